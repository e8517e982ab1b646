"""The hand-over Sleep: vLLM freezes its requests and offloads its weights for the step, then wakes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime

from claas_contract.input import ServingTarget
from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.serving import PauseMode
from claas_crds.v1alpha1.step import JobPhase
from claas_trainer.engines.access import GpuNeed
from claas_trainer.errors import ServingError
from claas_trainer.figures import seconds_since
from claas_trainer.gpu import gpu_of
from claas_trainer.logs import log
from claas_trainer.messages.events import Awake, PauseAnnounced, PauseConfirmed, Reporter
from claas_trainer.serving.handover.base import Handover, PauseTimes
from claas_trainer.serving.handover.checks import check_answers, check_applied, check_awake, holding
from claas_trainer.serving.pods import ServingPod, first_error, serving_error
from claas_vllm_client import CompanionStatus, ServerGone, VllmError, pause_serving, resume_serving
from claas_vllm_client import PauseMode as VllmPauseMode

_MODES = {
    PauseMode.KEEP: VllmPauseMode.KEEP,
    PauseMode.WAIT: VllmPauseMode.WAIT,
    PauseMode.ABORT: VllmPauseMode.ABORT,
}
_MEMORY_TIMEOUT_SECONDS = 15.0
_MEMORY_POLL_SECONDS = 0.1
_MEMORY_SETTLED_SECONDS = 2.0
"""After this time, memory that is still taken is assumed to stay taken during the pause."""
_DRAIN_SHARE = 0.9
_RESUME_TIMEOUT_SECONDS = 60.0


class SleepHandover(Handover):
    """Pauses each pod by its own address, after announcing it to the supervisor."""

    def __init__(self, pods: Sequence[ServingPod], serving: ServingTarget, reporter: Reporter) -> None:
        self._pods = tuple(pods)
        self._serving = serving
        self._reporter = reporter
        self._gpu: GpuNeed | None = None
        self._to_pause = self._pods

    async def check(self, gpu: GpuNeed | None) -> None:
        """Checks that every pod answers, accepts the token and mounts the volume, that none sleeps, and that the GPU
        is the trainer's."""
        self._gpu = gpu
        statuses = await asyncio.gather(*(self._check_pod(pod) for pod in self._pods))
        self._to_pause = holding(gpu, self._pods, statuses)

    def paused(self) -> AbstractAsyncContextManager[PauseTimes]:
        return self._paused()

    @asynccontextmanager
    async def _paused(self) -> AsyncIterator[PauseTimes]:
        times = PauseTimes()
        started = time.monotonic()
        self._reporter.phase(JobPhase.PAUSING)
        try:
            await self._pause()
            await self._wait_for_memory()
            times.sleep = seconds_since(started)
            yield times
        finally:
            waking = time.monotonic()
            self._reporter.phase(JobPhase.RESUMING)
            await self._resume()
            times.wake = seconds_since(waking)
            times.serving_gap = seconds_since(started)
            await check_applied(self._to_pause, self._serving)

    async def _check_pod(self, pod: ServingPod) -> CompanionStatus | None:
        status = await check_answers(pod)
        await check_awake(pod)
        return status

    async def _pause(self) -> None:
        for serving_pod in self._to_pause:
            # Before the call: no pod may be paused unannounced.
            self._reporter.send(
                PauseAnnounced(pod=serving_pod.pod.name, url=serving_pod.pod.url, at=datetime.now(UTC))
            )
        results = await asyncio.gather(*(self._pause_pod(pod) for pod in self._to_pause), return_exceptions=True)
        error = first_error(results)
        if error is not None:
            raise error

    async def _pause_pod(self, serving_pod: ServingPod) -> None:
        try:
            seconds = await pause_serving(
                serving_pod.client,
                mode=_MODES[self._serving.pause],
                drain_timeout_seconds=self._drain_timeout_seconds,
                sleep_timeout_seconds=self._serving.max_pause_seconds,
            )
        except VllmError as error:
            raise serving_error(serving_pod.pod, error, FailureReason.PAUSE_FAILED) from error
        self._reporter.send(PauseConfirmed(url=serving_pod.pod.url))
        log("paused", pod=serving_pod.pod.name, seconds=round(seconds, 3))

    @property
    def _drain_timeout_seconds(self) -> float:
        """Requests that arrive during a drain wait, so the drain is part of the pause and must end before it."""
        return min(self._serving.drain_timeout_seconds, _DRAIN_SHARE * self._serving.max_pause_seconds)

    async def _wait_for_memory(self) -> None:
        """Waits until the GPU's memory is free; a 200 from /sleep does not prove it."""
        if self._gpu is None or not self._to_pause:
            return
        started = time.monotonic()
        while True:
            gpu = await asyncio.to_thread(gpu_of, self._gpu.uuid)
            waited = time.monotonic() - started
            wanted = self._gpu.least_bytes if waited > _MEMORY_SETTLED_SECONDS else self._gpu.free_bytes
            # The management library does not list every GPU (not MIG slices); then only the step can find out.
            if gpu is None or gpu.free_bytes >= wanted:
                return
            if waited > _MEMORY_TIMEOUT_SECONDS:
                raise ServingError(
                    FailureReason.GPU_MEMORY_NOT_FREED,
                    f"{gpu.uuid}: {gpu.free_bytes >> 20} MiB are free while vLLM sleeps and the step needs"
                    f" {self._gpu.least_bytes >> 20} MiB; start vLLM with --enable-sleep-mode, and let nothing else"
                    " use this GPU",
                )
            await asyncio.sleep(_MEMORY_POLL_SECONDS)

    async def _resume(self) -> None:
        results = await asyncio.gather(*(self._resume_pod(pod) for pod in self._to_pause), return_exceptions=True)
        error = first_error(results)
        if error is not None:
            raise error

    async def _resume_pod(self, serving_pod: ServingPod) -> None:
        try:
            seconds = await resume_serving(serving_pod.client, timeout_seconds=_RESUME_TIMEOUT_SECONDS)
        except ServerGone:
            # The server ended, so nothing sleeps there. The step is still valid: it is published, and the operator
            # loads it into the next server.
            self._reporter.send(Awake(url=serving_pod.pod.url))
            log("server-gone", pod=serving_pod.pod.name)
            return
        except VllmError as error:
            raise ServingError(FailureReason.RESUME_FAILED, f"pod {serving_pod.pod.name}: {error}") from error
        self._reporter.send(Awake(url=serving_pod.pod.url))
        log("resumed", pod=serving_pod.pod.name, seconds=round(seconds, 3))
