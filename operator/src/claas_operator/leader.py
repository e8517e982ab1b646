"""The leader's Lease for the client library's election; a lost connection counts as a failed try."""

from __future__ import annotations

import logging

import aiohttp
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.leaderelection.leaderelectionrecord import LeaderElectionRecord
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock

log = logging.getLogger(__name__)

_NO_ANSWER = (aiohttp.ClientError, TimeoutError, OSError)


class LeaderLock(LeaseLock):  # type: ignore[misc]
    """The library's lock handles refusals of the API server but not lost connections, which would end the
    election."""

    async def get(self, name: str, namespace: str) -> tuple[bool, LeaderElectionRecord | Exception | None]:
        """Whether the Lease could be read, and its content, or else why not."""
        try:
            found: tuple[bool, LeaderElectionRecord | Exception | None] = await super().get(name, namespace)
        except _NO_ANSWER as error:
            return False, ApiException(status=0, reason=f"no answer: {type(error).__name__}")
        return found

    async def update(self, name: str, namespace: str, updated_record: LeaderElectionRecord) -> bool:
        """Whether the Lease could be written."""
        try:
            written: bool = await super().update(name, namespace, updated_record)
        except _NO_ANSWER as error:
            log.warning("the leader's Lease was not written: no answer: %s", type(error).__name__)
            return False
        return written
