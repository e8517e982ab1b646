"""The samples of a batch, made from the store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from claas_gateway.directory.models import Adapter
from claas_gateway.feedback.plan.following import End, Refusal
from claas_gateway.feedback.plan.samples import document, encoded, is_exact, of_adapter, sample_of
from claas_gateway.records import FeedbackItem, Rollout
from claas_gateway.store.interface import RolloutStore

ROLLOUT_DELETED = "The answer that it is about was deleted before it was trained on"
EARLIER_ADAPTER = "An earlier adapter of this name gave the answer, and its versions are not this one's"


class BatchSamples:
    """Makes samples of items. In a thread: those of long answers take a tenth of a second each."""

    def __init__(self, rollouts: RolloutStore) -> None:
        self._rollouts = rollouts

    async def size(self, item: FeedbackItem) -> int | None:
        """An item's size in a document, in bytes; None if its answer is deleted."""
        rollout = await self._rollouts.get(item.rollout_id or "")
        return None if rollout is None else len(await asyncio.to_thread(_line, item, rollout)) + 1

    async def document(self, adapter: Adapter, members: Sequence[FeedbackItem]) -> bytes | End:
        """The document of a batch, or its end, if some of its members can't be trained on any more."""
        lines: list[bytes] = []
        deleted: dict[int, str] = {}
        foreign: dict[int, str] = {}
        for place, item in enumerate(members):
            rollout = await self._rollouts.get(item.rollout_id or "")
            if rollout is None:
                deleted[place] = ROLLOUT_DELETED
                continue
            own = of_adapter(rollout, adapter.created)
            if own is not rollout and not (is_exact(own) or adapter.found.spec.feedback.allow_reconstructed):
                foreign[place] = EARLIER_ADAPTER
            lines.append(await asyncio.to_thread(_line, item, own))
        if deleted or not members:
            return End(reason=Refusal.ROLLOUT_DELETED, message=ROLLOUT_DELETED, bad=deleted)
        if foreign:
            return End(reason=Refusal.EARLIER_ADAPTER, message=EARLIER_ADAPTER, bad=foreign)
        return document(lines)


def _line(item: FeedbackItem, rollout: Rollout) -> bytes:
    return encoded(sample_of(item, rollout))
