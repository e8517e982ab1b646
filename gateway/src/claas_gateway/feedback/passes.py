"""One pass over an adapter: forms batches, makes their jobs, follows them, and accounts for them. Idempotent."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from claas_crds.v1alpha1.version import VersionVerdict
from claas_gateway.directory.models import Adapter
from claas_gateway.feedback.act.batch_samples import ROLLOUT_DELETED, BatchSamples
from claas_gateway.feedback.act.history import History
from claas_gateway.feedback.act.submission import RefusedError, Submission
from claas_gateway.feedback.plan.batching import Gathering, WaitingItem, batches_of
from claas_gateway.feedback.plan.following import End, Follow, Made, Refusal, Submit, Wait, decide
from claas_gateway.feedback.waiters import Waiters
from claas_gateway.identifiers import Prefix, new_identifier
from claas_gateway.records import BatchState, FeedbackBatch, FeedbackItem, ItemOutcome, ItemState
from claas_gateway.services import Services
from claas_kube.resources import ADAPTERS

log = logging.getLogger(__name__)

MOST_OPEN_BATCHES = 16
"""So many batches of an adapter may wait for their steps; further items then wait to be gathered."""
MOST_LOOKED_AT = 512
"""How many waiting items a pass looks at, unless a batch takes more."""
OnLearned = Callable[[Adapter, int, Sequence[FeedbackItem]], None]
"""Told of a version that learned from items, with these."""


class Passes:
    """Passes over adapters, one at a time for each."""

    def __init__(self, services: Services, submission: Submission, waiters: Waiters, on_learned: OnLearned) -> None:
        self._services = services
        self._store = services.store
        self._directory = services.directory
        self._submission = submission
        self._waiters = waiters
        self._samples = BatchSamples(services.store.rollouts)
        self._on_learned = on_learned
        self._history = History(services.directory, services.store.history, services.clock)
        self._sizes: dict[tuple[str, str], dict[str, int]] = {}
        """Bytes of waiting items' samples, by adapter and item."""
        self._gone_since: dict[str, datetime] = {}
        """Since when the job of a submitted batch is missing, by batch."""
        self._unaccounted: dict[tuple[str, str], set[str]] = {}
        """Batches at the last pass, by adapter."""

    async def run(self, namespace: str, name: str) -> float | None:
        """One pass; the seconds until the next one, None: not before something changes."""
        adapter = self._directory.adapter(namespace, name)
        if adapter is not None:
            await self._history.note(adapter)
        again: list[float | None] = []
        failed: list[Exception] = []
        unaccounted = await self._store.batches.unaccounted(namespace, name)
        self._tell_of_others((namespace, name), {batch.id for batch in unaccounted})
        for batch in unaccounted:
            try:
                again.append(await self._advance(batch, adapter))
            except Exception as error:  # noqa: BLE001  (one batch never holds up another; raised below)
                failed.append(error)
        if len(unaccounted) < MOST_OPEN_BATCHES:
            # After what clients wait for: what gathers may be much.
            again.append(await self._gather(namespace, name, adapter))
        if failed:
            raise failed[0]
        return min((seconds for seconds in again if seconds is not None), default=None)

    def _tell_of_others(self, place: tuple[str, str], unaccounted: set[str]) -> None:
        """Have those look again who wait for what another replica accounted for."""
        if self._unaccounted.get(place, set()) - unaccounted:
            self._waiters.tell_place(*place)
        self._unaccounted[place] = unaccounted

    async def _gather(self, namespace: str, name: str, adapter: Adapter | None) -> float | None:
        """Form the batches that are due; the seconds until the next one is."""
        items = await self._store.feedback.waiting(namespace, name)
        # What waits no longer is forgotten, whoever took it.
        known = self._sizes.pop((namespace, name), {})
        if not items:
            return None
        if adapter is None:
            return await self._refuse_without_adapter(namespace, name, items)
        gathering = adapter.found.spec.feedback
        looked_at = items[: max(MOST_LOOKED_AT, gathering.max_items)]
        waiting = [each for item in looked_at if (each := await self._measured(item, known)) is not None]
        self._sizes[namespace, name] = {each.item.id: each.size for each in waiting}
        window = timedelta(seconds=gathering.window_seconds)
        now = self._services.clock()
        plan = batches_of(waiting, Gathering(window, gathering.max_items), now)
        for members in plan.due:
            batch = new_batch(adapter, members[0], now)
            await self._store.batches.form(batch, [item.id for item in members])
        if plan.due:
            return 0.0
        return max(0.0, (plan.again - now).total_seconds()) if plan.again is not None else None

    async def _measured(self, item: FeedbackItem, known: Mapping[str, int]) -> WaitingItem | None:
        """The item with its sample's size; refused when its answer is gone."""
        size = known.get(item.id)
        if size is None:
            size = await self._samples.size(item)
            if size is None:
                await self._refuse([item], Refusal.ROLLOUT_DELETED, ROLLOUT_DELETED)
                return None
        return WaitingItem(item, size)

    async def _advance(self, batch: FeedbackBatch, adapter: Adapter | None) -> float | None:
        """Take a batch a step further; the seconds until it is worth another look."""
        job = self._directory.job(batch.namespace, batch.id) or await self._submission.find(batch)
        made = None if job is not None else await self._made(batch, adapter)
        now = self._services.clock()
        if job is not None or batch.state is BatchState.FORMED:
            self._gone_since.pop(batch.id, None)
        else:
            self._gone_since.setdefault(batch.id, now)
        decision = decide(batch, job, made, self._gone_since.get(batch.id), now)
        match decision:
            case Submit():
                return await self._submit(batch, adapter)
            case Wait(seconds):
                return seconds
            case Follow(job_uid, phase):
                if batch.state is BatchState.FORMED:
                    await self._submission.own(batch, job_uid)
                    await self._submitted(batch, job_uid)
                if batch.phase != phase:
                    await self._store.batches.progressed(batch.id, phase)
                return None
            case End():
                await self._account(batch, adapter, decision)
                # There is room for another batch now, or there is one of what is left.
                return 0.0

    async def _made(self, batch: FeedbackBatch, adapter: Adapter | None) -> Made | None:
        """The version that names the batch's job, if one does."""
        for version in self._directory.versions(adapter) if adapter is not None else ():
            if version.job == batch.id:
                return Made(version.number, version.verdict is VersionVerdict.REJECTED)
        seen = await self._store.history.made_by(batch.namespace, batch.adapter, batch.id)
        return Made(seen.number, seen.verdict == VersionVerdict.REJECTED.value) if seen is not None else None

    async def _submit(self, batch: FeedbackBatch, adapter: Adapter | None) -> float | None:
        if adapter is None:
            if await self._exists(batch.namespace, batch.adapter):
                return 1.0
            await self._account(batch, None, End(reason=Refusal.ADAPTER_NOT_FOUND, message=_ADAPTER_DELETED))
            return 0.0
        members = await self._store.feedback.items_of_batch(batch.id)
        made = await self._samples.document(adapter, members)
        if isinstance(made, End):
            await self._account(batch, adapter, made)
            return 0.0
        try:
            job_uid = await self._submission.submit(batch, adapter, made)
        except RefusedError as error:
            await self._account(batch, adapter, End(reason=Refusal.JOB_REFUSED, message=str(error)))
            return 0.0
        await self._submitted(batch, job_uid)
        return None

    async def _submitted(self, batch: FeedbackBatch, job_uid: str) -> None:
        await self._store.batches.submitted(batch.id, job_uid, self._services.clock())
        log.info("batch %s of %s/%s is a DistillJob", batch.id, batch.namespace, batch.adapter)

    async def _account(self, batch: FeedbackBatch, adapter: Adapter | None, end: End) -> None:
        """Write down how a batch ended, and remove its samples."""
        if end.job_uid is None:
            # No job owns them: after a crash between the two, nobody would.
            await self._submission.remove_samples(batch)
        members = await self._store.feedback.items_of_batch(batch.id)
        outcomes = end.outcomes(members)
        now = self._services.clock()
        ended = replace(
            batch,
            state=BatchState.ACCOUNTED,
            job_uid=end.job_uid or batch.job_uid,
            phase=end.phase or batch.phase,
            accounted=now,
            version=end.version,
            reason=end.reason,
            message=end.message,
            metrics=dict(end.metrics),
            timings=dict(end.timings),
            handover=end.handover,
            weights=end.weights,
            served=end.served,
        )
        rest = None
        if len(outcomes) < len(members):
            rest = replace(
                batch,
                id=new_identifier(Prefix.BATCH, now.timestamp()),
                created=now,
                state=BatchState.FORMED,
                job_uid=None,
                phase=None,
                submitted=None,
            )
        first = await self._store.batches.account(ended, outcomes, rest)
        self._gone_since.pop(batch.id, None)
        self._waiters.tell({item.request_id for item in members})
        if first:
            self._count(ended, members, outcomes)
            if adapter is not None and ended.version is not None:
                self._on_learned(adapter, ended.version, members)
        if end.job_uid is not None:
            await self._submission.remove_samples(batch)

    def _count(self, batch: FeedbackBatch, members: Sequence[FeedbackItem], outcomes: Sequence[ItemOutcome]) -> None:
        metrics, place = self._services.metrics, (batch.namespace, batch.adapter)
        metrics.batches.labels(*place, "version" if batch.version is not None else "refused").inc()
        for outcome in outcomes:
            metrics.items.labels(*place, outcome.state.value).inc()
        if batch.version is not None and batch.accounted is not None:
            for item in members:
                metrics.feedback_seconds.labels(*place).observe((batch.accounted - item.created).total_seconds())
        log.info(
            "batch %s of %s/%s: %s",
            batch.id,
            *place,
            f"version {batch.version}" if batch.version is not None else batch.reason,
        )

    async def _refuse_without_adapter(self, namespace: str, name: str, items: Sequence[FeedbackItem]) -> float | None:
        if await self._exists(namespace, name):
            return 1.0
        await self._refuse(items, Refusal.ADAPTER_NOT_FOUND, _ADAPTER_DELETED)
        return None

    async def _refuse(self, items: Sequence[FeedbackItem], reason: Refusal, message: str) -> None:
        outcomes = [ItemOutcome(item.id, ItemState.REFUSED, reason=reason, message=message) for item in items]
        await self._store.feedback.refuse(outcomes)
        self._waiters.tell({item.request_id for item in items})

    async def _exists(self, namespace: str, name: str) -> bool:
        """Whether an adapter that the directory does not show exists all the same."""
        return await self._services.api.get(ADAPTERS, namespace, name) is not None


_ADAPTER_DELETED = "The LoraAdapter was deleted before a step was taken"


def new_batch(adapter: Adapter, first: FeedbackItem, now: datetime) -> FeedbackBatch:
    """A batch of the items that go with the first one."""
    return FeedbackBatch(
        id=new_identifier(Prefix.BATCH, now.timestamp()),
        namespace=adapter.namespace,
        adapter=adapter.name,
        adapter_uid=adapter.uid,
        created=now,
        state=BatchState.FORMED,
        training=first.training,
    )
