"""What goes on behind the routes: passes over adapters, when something changes and now and then; and expiry."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta

from claas_gateway.feedback.act.replay import Replay
from claas_gateway.feedback.act.submission import Submission
from claas_gateway.feedback.act.volumes import SampleVolumes
from claas_gateway.feedback.passes import Passes
from claas_gateway.feedback.queue import PassQueue, told
from claas_gateway.feedback.waiters import Waiters
from claas_gateway.records import BatchState
from claas_gateway.services import Services

log = logging.getLogger(__name__)

RESYNC_SECONDS = 15.0
"""How often everything that is open is looked at, whether or not a watch told of it."""
STUCK_SECONDS = 90.0
"""A loop that has not come round for so long is stuck."""
_EXPIRY_SECONDS = 3600.0
_GATHER_SECONDS = 0.2
"""Items that come in quick succession are looked at together."""
_SWEPT_BATCHES = 100


class FeedbackWorker:
    """The loops, and those who wait for them."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.waiters = Waiters()
        self.volumes = SampleVolumes(services.settings.sample_volumes, services.settings.pod_namespace)
        self._submission = Submission(services.api, self.volumes)
        self._replay = Replay(services.store, services.upstream, services.settings.replays_per_batch)
        passes = Passes(services, self._submission, self.waiters, self._replay.add)
        self._queue = PassQueue(passes.run)
        self._came_round = services.clock()
        self._trouble: str | None = None
        services.directory.listen(self._queue.wake)
        services.checks["feedback"] = self.check
        services.at_stop.append(self.waiters.end)

    def wake(self, namespace: str, adapter: str, *, at_once: bool) -> None:
        """New items are stored."""
        self._queue.wake(namespace, adapter, 0.0 if at_once else _GATHER_SECONDS)

    def check(self) -> str | None:
        """None, or what is wrong."""
        silent = (self._services.clock() - self._came_round).total_seconds()
        if silent > STUCK_SECONDS:
            why = f": {self._trouble}" if self._trouble else ""
            return f"feedback has not been looked at for {silent:.0f} s{why}"
        return None

    async def run(self) -> None:
        """Work until cancelled."""
        for adapter in self._services.directory.adapters(None):
            # Versions may have come while no gateway ran.
            self._queue.wake(adapter.namespace, adapter.name)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._queue.run())
            tasks.create_task(self._replay.run())
            tasks.create_task(self._repeat(self._resync, RESYNC_SECONDS))
            tasks.create_task(self._repeat(self.sweep, _EXPIRY_SECONDS))
            if self._services.settings.retention_days:
                tasks.create_task(self._repeat(self._expire, _EXPIRY_SECONDS))

    async def _resync(self) -> None:
        """Wake all adapters with something open; other replicas may have stored it."""
        store = self._services.store
        places = set(await store.feedback.waiting_adapters())
        places |= {(batch.namespace, batch.adapter) for batch in await store.batches.unaccounted()}
        for place in places:
            self._queue.wake(*place)
        self.waiters.tell_all()
        self._came_round = self._services.clock()

    async def _expire(self) -> None:
        before = self._services.clock() - timedelta(days=self._services.settings.retention_days)
        rows = await self._services.store.expire(before)
        if rows:
            log.info("deleted texts of %d rows from before %s", rows, before.isoformat(timespec="seconds"))

    async def sweep(self) -> None:
        """Remove samples of batches that were accounted for when a gateway was killed."""
        for batch in await self._services.store.batches.recent(None, None, _SWEPT_BATCHES):
            if batch.state is BatchState.ACCOUNTED:
                await self._submission.remove_samples(batch)

    async def _repeat(self, work: Callable[[], Awaitable[None]], every_seconds: float) -> None:
        """Do it again and again; a failure is told, and tried again soon."""
        while True:
            try:
                await work()
                pause, self._trouble = every_seconds, None
            except Exception as error:  # noqa: BLE001  (a loop must go on whatever happens)
                pause, self._trouble = min(5.0, every_seconds), told(error)
                log.warning("%s: %s; again in %.0f s", work.__name__.strip("_"), self._trouble, pause)
            await asyncio.sleep(pause)
