"""Reads what a page shows from the store, for one caller."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime

from claas_gateway.access.callers import Caller
from claas_gateway.dashboard.overview import AdapterLine, Overview, overview
from claas_gateway.dashboard.shared_answers import SharedAnswers
from claas_gateway.dashboard.timeline import bars
from claas_gateway.dashboard.views import (
    AdapterPage,
    BatchLine,
    BatchPage,
    FeedbackPage,
    HomePage,
    ItemLine,
    ItemList,
    VersionPage,
    expects_answer,
    panels,
    path_of,
    version_lines,
)
from claas_gateway.directory.interface import Directory
from claas_gateway.errors import NotFound
from claas_gateway.records import FeedbackBatch, FeedbackItem
from claas_gateway.store.interface import ANY_ITEM, ItemFilter, Store

SHARED_SECONDS = 1.0
"""Pages of the same thing within that time show the same answer of the store."""
RECENT_VERSIONS = 60
"""Versions in chart and table, unless all are asked for."""
RECENT_BATCHES = 12


class DashboardReader:
    """Reads views. What a caller may not see is not found."""

    def __init__(self, store: Store, directory: Directory, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._directory = directory
        self._clock = clock
        self._shared = SharedAnswers(SHARED_SECONDS, time.monotonic)

    def forget(self) -> None:
        """Read everything anew: something has changed."""
        self._shared.forget()

    async def overview(self) -> Overview:
        """All adapters; not for a caller's eyes as it is."""
        return await self._shared.get("overview", self._overview)

    async def home(self, caller: Caller, page: int, per_page: int) -> HomePage:
        """The first page."""
        known = await self.overview()
        items = await self._items(caller.namespace, caller.adapter, page, per_page, ANY_ITEM)
        return HomePage(tuple(known.seen_by(caller)), items)

    async def adapter(
        self, caller: Caller, namespace: str, name: str, page: int, per_page: int, only: ItemFilter, every: bool
    ) -> AdapterPage:
        """One adapter; with `every` all of its versions, else the newest ones."""
        line = await self._line(caller, namespace, name)

        async def make() -> AdapterPage:
            versions = await self._store.history.versions(namespace, name)
            changes = await self._store.history.changes(namespace, name)
            scores = await self._store.history.scores(namespace, name)
            shown = versions if every else versions[-RECENT_VERSIONS:]
            lines = version_lines(shown, changes, scores, line.served)
            batches = await self._store.batches.recent(namespace, name, RECENT_BATCHES)
            return AdapterPage(
                line=line,
                panels=panels(lines, sorted(scores)),
                versions=tuple(reversed(lines)),
                score_names=tuple(sorted(scores)),
                older_versions=len(versions) - len(shown),
                batches=self._batch_lines(batches),
                items=await self._items(namespace, name, page, per_page, only),
                only=only,
            )

        return await self._shared.get(("adapter", namespace, name, page, per_page, only, every), make)

    async def version(self, caller: Caller, namespace: str, name: str, number: int) -> VersionPage:
        """One version."""
        line = await self._line(caller, namespace, name)
        versions = await self._store.history.versions(namespace, name)
        changes = await self._store.history.changes(namespace, name)
        scores = await self._store.history.scores(namespace, name)
        lines = version_lines(versions, changes, scores, line.served)
        found = next((each for each in lines if each.seen.number == number), None)
        if found is None:
            raise NotFound(f"adapter '{name}' has no version {number}")
        numbers = [each.number for each in versions]
        batch = await self._store.batches.get(found.seen.job) if found.seen.job else None
        visible = batch is not None and caller.sees(batch.namespace, batch.adapter)
        learned = await self._store.feedback.items_of_version(namespace, name, number)
        return VersionPage(
            line=found,
            older=max((each for each in numbers if each < number), default=None),
            newer=min((each for each in numbers if each > number), default=None),
            batch=self._batch_lines([batch])[0] if batch is not None and visible else None,
            changes=tuple(each for each in changes if number in (each.version, each.previous)),
            items=await self._item_lines(learned),
        )

    async def batch(self, caller: Caller, batch_id: str) -> BatchPage:
        """One batch."""
        batch = await self._store.batches.get(batch_id)
        if batch is None or not caller.sees(batch.namespace, batch.adapter):
            raise NotFound("there is no such batch")
        items = await self._store.feedback.items_of_batch(batch_id)
        return BatchPage(self._batch_lines([batch])[0], await self._item_lines(items))

    async def item(self, caller: Caller, item_id: str) -> FeedbackPage:
        """One item."""
        item = await self._store.feedback.item(item_id)
        if item is None or not caller.sees(item.namespace, item.adapter):
            raise NotFound("there is no such feedback")
        rollout = await self._store.rollouts.get(item.rollout_id) if item.rollout_id else None
        if rollout is not None and rollout.namespace != item.namespace:
            rollout = None
        batch = await self._store.batches.get(item.batch_id) if item.batch_id else None
        return FeedbackPage(item, rollout, batch, path_of(item, batch), expects_answer(item, batch, self._clock()))

    async def _overview(self) -> Overview:
        return overview(
            self._directory.adapters(None),
            await self._store.history.adapters(),
            await self._store.feedback.counts(),
            await self._store.batches.newest(),
            listed=self._directory.listed(),
        )

    async def _line(self, caller: Caller, namespace: str, name: str) -> AdapterLine:
        line = (await self.overview()).lines.get((namespace, name))
        if line is None or not caller.sees(namespace, name):
            raise NotFound(f"there is no adapter '{name}' in namespace '{namespace}'")
        return line

    async def _items(
        self, namespace: str | None, adapter: str | None, page: int, per_page: int, only: ItemFilter
    ) -> ItemList:
        async def make() -> ItemList:
            found = await self._store.feedback.page(namespace, adapter, page, per_page, only)
            return ItemList(await self._item_lines(found.items), found.total, page, per_page)

        return await self._shared.get(("items", namespace, adapter, page, per_page, only), make)

    async def _item_lines(self, items: Sequence[FeedbackItem]) -> tuple[ItemLine, ...]:
        wanted = sorted({each.rollout_id for each in items if each.rollout_id})
        prompts = await self._store.rollouts.prompts(wanted) if wanted else {}
        return tuple(ItemLine(each, prompts.get(each.rollout_id or "")) for each in items)

    def _batch_lines(self, batches: Sequence[FeedbackBatch]) -> tuple[BatchLine, ...]:
        drawn = bars(batches, self._clock())
        return tuple(BatchLine(batch, bar) for batch, bar in zip(batches, drawn, strict=True))
