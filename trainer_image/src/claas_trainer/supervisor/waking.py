"""Wakes the servers that a dead worker may have left paused."""

from __future__ import annotations

import asyncio
import time

from claas_contract.input import ServingTarget
from claas_trainer.errors import TrainerError
from claas_trainer.logs import log
from claas_trainer.paths import Paths
from claas_trainer.serving.pods import ServingPod, connect
from claas_trainer.supervisor.watch import WorkerState
from claas_vllm_client import ServerGone, ensure_awake, resume_serving

_WAKE_TIMEOUT_SECONDS = 60.0
_LATE_PAUSE_CHECK_SECONDS = (0.5, 1.5)


async def wake_announced(serving: ServingTarget | None, paths: Paths, watch: WorkerState) -> list[str]:
    """Wake every server that the worker announced and did not report awake; returns the names of those that stay
    asleep."""
    announced = dict(watch.announced)
    if not announced:
        return []
    try:
        async with connect(serving, paths) as pods:
            mine = [pod for pod in pods if pod.pod.url in announced]
            woken = await asyncio.gather(*(_wake(pod, pod.pod.url in watch.confirmed) for pod in mine))
    except TrainerError as error:
        log("wake-failed", error=error.message)
        return sorted(event.pod for event in announced.values())
    return sorted(pod.pod.name for pod, awake in zip(mine, woken, strict=True) if not awake)


async def _wake(pod: ServingPod, confirmed: bool) -> bool:
    started = time.monotonic()
    try:
        await resume_serving(pod.client, timeout_seconds=_WAKE_TIMEOUT_SECONDS)
        log("woken", pod=pod.pod.name, seconds=round(time.monotonic() - started, 3))
        if not confirmed:
            # The worker died between announcement and answer: its pause call may still be under way.
            for delay in _LATE_PAUSE_CHECK_SECONDS:
                await asyncio.sleep(delay)
                await ensure_awake(pod.client, timeout_seconds=_WAKE_TIMEOUT_SECONDS)
    except ServerGone:
        log("server-gone", pod=pod.pod.name)
    except Exception as error:  # noqa: BLE001 - no error may keep the other servers from being woken
        log("wake-failed", pod=pod.pod.name, error=type(error).__name__)
        return False
    return True
