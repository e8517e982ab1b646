"""Keeps a collection up to date: one list, then an endless watch."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Generic, TypeVar, cast

from claas_kube.api import Api
from claas_kube.errors import ApiError, Gone, Unavailable
from claas_kube.index.collection import Collection
from claas_kube.listing import EVERYTHING, EventType, Selection
from claas_kube.objects.meta import Manifest, ObjectMeta
from claas_kube.resources import Resource

log = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 15.0


class Watch(Generic[T]):
    """Keeps a collection's objects of one namespace (None: of all) up to date.

    After a lost connection the watch continues from the last resourceVersion seen; if the server has forgotten it,
    everything is listed again. Refusals and outages are retried with back-off; meanwhile the collection has the last
    known state.
    """

    def __init__(
        self,
        api: Api,
        resource: Resource,
        collection: Collection[T],
        namespace: str | None,
        selection: Selection = EVERYTHING,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._api = api
        self._resource = resource
        self._collection = collection
        self._namespace = namespace
        self._selection = selection
        self._sleep = sleep
        self._since: str | None = None
        self._failures = 0
        self._trouble: ApiError | None = None
        self._tried = asyncio.Event()
        self.listed = False
        """Whether the collection has been complete once."""

    async def ready(self) -> None:
        """Wait for the first list; raises ApiError if it fails."""
        while not self.listed:
            if self._trouble is not None:
                error, self._trouble = self._trouble, None
                raise error
            self._tried.clear()
            await self._tried.wait()

    async def run(self) -> None:
        """List and watch until cancelled."""
        while True:
            try:
                if self._since is None:
                    self._since = await self._list()
                    self.listed = True
                    self._tried.set()
                await self._follow(self._since)
            except Gone as error:
                log.info("%s: listed again: %s", self._what, error)
                self._since = None
                await self._pause(0.0)
            except ApiError as error:
                if not isinstance(error, Unavailable):
                    # Where there is the right to list alone, lists every few seconds take the place of a watch.
                    self._since = None
                self._trouble = error
                self._tried.set()
                await self._pause(error.retry_after_seconds if isinstance(error, Unavailable) else 0.0, error)

    async def compare(self) -> None:
        """Check by metadata that no change was missed, and read missed objects: a safety net for the watch."""
        seen: dict[tuple[str, str], ObjectMeta] = {}
        selection = Selection(self._selection.labels, self._selection.fields, page_size=500)
        pages = self._api.pages(self._resource, self._namespace, selection, metadata_only=True)
        async with aclosing(pages):
            async for page in pages:
                for found in page.items:
                    metadata = ObjectMeta.model_validate(found["metadata"])
                    seen[metadata.namespace, metadata.name] = metadata
        for at, entry in self._collection.entries(self._namespace).items():
            if at not in seen or seen[at].resource_version != entry.version:
                await self.read(*at)
        for at in seen.keys() - self._collection.entries(self._namespace).keys():
            await self.read(*at)

    async def read(self, namespace: str, name: str) -> None:
        """Read one object from the server, if the collection may be behind."""
        known = self._collection.entry(namespace, name)
        found = await self._api.get(self._resource, namespace, name)
        if found is not None:
            await self._collection.take(found)
        elif known is not None and self._collection.entry(namespace, name) == known:
            self._collection.drop(namespace, name, known.version)

    async def _list(self) -> str:
        version = ""
        names = []
        async with aclosing(self._api.pages(self._resource, self._namespace, self._selection)) as pages:
            async for page in pages:
                version = page.version
                for found in page.items:
                    metadata = cast(Manifest, found["metadata"])
                    names.append((str(metadata.get("namespace", "")), str(metadata["name"])))
                    await self._collection.take(found)
                    await asyncio.sleep(0)
                del page
        self._collection.keep(self._namespace, names, version)
        return version

    async def _follow(self, since: str) -> None:
        began = asyncio.get_running_loop().time()
        events = self._api.watch(self._resource, self._namespace, since, self._selection)
        async with aclosing(events):
            async for event in events:
                self._failures = 0
                if event.type is EventType.DELETED:
                    metadata = cast(Manifest, event.object["metadata"])
                    place, name = str(metadata.get("namespace", "")), str(metadata["name"])
                    self._collection.drop(place, name, event.version)
                elif event.type is not EventType.BOOKMARK:
                    await self._collection.take(event.object)
                self._since = event.version
        if asyncio.get_running_loop().time() - began < 1.0:
            await self._pause(0.0)

    async def _pause(self, least_seconds: float, error: ApiError | None = None) -> None:
        """Wait before the next try: exponential back-off with jitter."""
        longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(self._failures, 10))
        seconds = max(least_seconds, random.uniform(longest / 2, longest))
        self._failures += 1
        if error is not None:
            log.log(
                logging.WARNING if self._failures > 2 else logging.INFO,
                "%s: %s; again in %.1f s",
                self._what,
                error,
                seconds,
            )
        await self._sleep(seconds)

    @property
    def _what(self) -> str:
        return f"watching {self._resource.plural}" + (f" in {self._namespace}" if self._namespace else "")
