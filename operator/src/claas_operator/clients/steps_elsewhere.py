"""Steps under way that are computed elsewhere, in all namespaces: each holds its adapter's Lease, and there are only
so many places."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from claas_kube.errors import Conflict
from claas_operator.clients.reader import Reader
from claas_operator.plan.serving_lease import ServingLease


class StepsElsewhere:
    """The places, and who takes them."""

    def __init__(self, read: Reader, most: int) -> None:
        self._read = read
        self.most = most
        self._being_granted: set[tuple[str, str]] = set()
        """Leases whose grant is being written, which no list shows yet."""

    async def under_way(self) -> frozenset[tuple[str, str]]:
        """Namespace and name of each Lease that is held."""
        leases = await self._read.leases(None)
        held = {(each.namespace, each.name) for each in leases if each.adapter is not None and each.grant is not None}
        return frozenset(held | self._being_granted)

    @asynccontextmanager
    async def place_for(self, lease: ServingLease) -> AsyncIterator[None]:
        """Take a place while a grant is being written. Raises Conflict where there is none: two passes may each have
        seen the last one free."""
        if lease.adapter is None or lease.grant is None:
            yield
            return
        mine = (lease.namespace, lease.name)
        taken = await self.under_way()
        if mine not in taken and len(taken) >= self.most:
            raise Conflict(409, f"Lease {lease.name}", f"{self.most} steps are under way, as many as there may be")
        self._being_granted.add(mine)
        try:
            yield
        finally:
            self._being_granted.discard(mine)
