"""The watches of a program that looks after adapters: those of the kinds that it adds, and of the Deployments that
adapters name."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol, TypeVar

from claas_kube.api import Api
from claas_kube.errors import ApiError
from claas_kube.index.collection import Collection, Name
from claas_kube.index.served_deployment import ServedDeployment
from claas_kube.index.watch import Watch
from claas_kube.listing import EVERYTHING, Selection
from claas_kube.objects.meta import Manifest
from claas_kube.objects.resources import AdapterObject
from claas_kube.resources import Resource

log = logging.getLogger(__name__)

T = TypeVar("T")

COMPARE_SECONDS = 600.0
"""Approximate interval in seconds of comparing the index with lists of metadata, in case a watch has missed a
change."""


async def decoded_adapter(found: Manifest, before: AdapterObject | None) -> AdapterObject:
    """A LoraAdapter's value."""
    return AdapterObject.model_validate(found)


class _Watching(Protocol):
    """A watch of any kind of object."""

    listed: bool

    async def ready(self) -> None: ...
    async def run(self) -> None: ...
    async def compare(self) -> None: ...
    async def read(self, namespace: str, name: str) -> None: ...


class Watches:
    """Keeps collections up to date, and follows the Deployments that adapters name, and no others."""

    def __init__(
        self,
        api: Api,
        adapters: Collection[AdapterObject],
        deployment_changed: Callable[[str, str], None] = lambda namespace, name: None,
    ) -> None:
        """`adapters` are grouped under the names of their Deployments. `deployment_changed` is called with namespace
        and name when such a Deployment or the readiness of its pods has changed."""
        self._api = api
        self._adapters = adapters
        self._deployment_changed = deployment_changed
        self._watches: dict[tuple[Resource, str | None], _Watching] = {}
        self._served: dict[Name, ServedDeployment] = {}
        self._following: dict[Name, asyncio.Task[None]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        adapters.listen(self._adapter_changed)

    def add(
        self, resource: Resource, collection: Collection[T], namespace: str | None, selection: Selection = EVERYTHING
    ) -> None:
        """Keep a collection's objects of one namespace (None: of all) up to date; before `run`."""
        self._watches[resource, namespace] = Watch(self._api, resource, collection, namespace, selection)

    @property
    def listed(self) -> bool:
        """Whether everything that was added has been listed once."""
        return all(watch.listed for watch in self._watches.values())

    def served(self, namespace: str, deployment: str) -> ServedDeployment | None:
        """A Deployment that an adapter names, and its pods."""
        return self._served.get((namespace, deployment))

    def served_within(self, namespace: str) -> Iterator[ServedDeployment]:
        """The Deployments of a namespace that adapters name."""
        return (served for (place, _), served in self._served.items() if place == namespace)

    async def ready(self) -> None:
        """Wait until everything that was added has been listed once; raises ApiError if that fails."""
        for watch in self._watches.values():
            await watch.ready()

    async def deployments_ready(self) -> None:
        """The same of the Deployments that adapters name by now, and their pods."""
        for served in list(self._served.values()):
            await served.ready()

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            for (resource, namespace), watch in self._watches.items():
                tasks.create_task(watch.run(), name=f"watch {resource.plural} {namespace or ''}")
            for at in self._served:
                self._follow(at)
            tasks.create_task(self._compare(), name="compare the index")

    async def refused(self, resource: Resource, namespace: str, name: str) -> None:
        """An own write met a conflict, or an object that is gone, so the known state is too old: read it again."""
        watch = self._watches.get((resource, namespace)) or self._watches.get((resource, None))
        if watch is not None:
            try:
                await watch.read(namespace, name)
            except ApiError as error:
                log.info("%s %s/%s could not be read anew: %s", resource.plural, namespace, name, error)

    async def compare(self) -> None:
        """Compare everything with the cluster once, by metadata."""
        watches: list[_Watching | ServedDeployment] = [*self._watches.values(), *self._served.values()]
        for watch in watches:
            try:
                await watch.compare()
            except ApiError as error:
                log.warning("the index could not be compared with the cluster: %s", error)

    async def _compare(self) -> None:
        while True:
            await asyncio.sleep(COMPARE_SECONDS * random.uniform(0.8, 1.2))
            await self.compare()

    def _adapter_changed(
        self, namespace: str, name: str, before: AdapterObject | None, after: AdapterObject | None
    ) -> None:
        for adapter in (before, after):
            if adapter is None or adapter.outside_cluster:
                continue
            at = (namespace, adapter.deployment_name)
            if not self._adapters.grouped(*at):
                self._served.pop(at, None)
                if (following := self._following.pop(at, None)) is not None:
                    following.cancel()
            elif at not in self._served:
                self._served[at] = ServedDeployment(self._api, *at, partial(self._deployment_changed, *at))
                self._follow(at)

    def _follow(self, at: Name) -> None:
        if self._tasks is not None:
            self._following[at] = self._tasks.create_task(self._served[at].run(), name=f"follow {at[0]}/{at[1]}")
