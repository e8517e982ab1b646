"""The swap: puts a published version into service on every pod."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from claas_contract.input import ServingTarget
from claas_contract.result import PublishedVersion
from claas_trainer.errors import VersionRejectedError
from claas_trainer.logs import log
from claas_trainer.serving.liveness import alive
from claas_trainer.serving.pods import ServingPod
from claas_vllm_client import (
    AdapterRejected,
    AliasRejected,
    ProbeFailed,
    ProbeSpec,
    RouteMissing,
    VllmError,
    put_in_service,
)


async def swap(pods: Sequence[ServingPod], serving: ServingTarget, version: PublishedVersion) -> list[str]:
    """Load, probe and flip on all pods concurrently; returns the names of the pods that serve the version now.

    A pod that sleeps, is unreachable, or whose server ends during the swap, is left to the operator. Raises
    VersionRejectedError if a running vLLM refuses to load the version or it fails its probe; the previous version
    stays in service there.
    """
    results = await asyncio.gather(*(_swap_pod(pod, serving, version) for pod in pods), return_exceptions=True)
    swapped = []
    for pod, result in zip(pods, results, strict=True):
        # An answer from a server that is ending, or fell asleep meanwhile, proves nothing about the version.
        if isinstance(result, AdapterRejected | AliasRejected | ProbeFailed) and await _awake(pod):
            message = f"pod {pod.pod.name} did not take version {version.number}: {result}"
            raise VersionRejectedError(version, message) from result
        if isinstance(result, VllmError):
            log("swap-failed", pod=pod.pod.name, version=version.number, error=type(result).__name__)
        elif isinstance(result, BaseException):
            raise result
        elif result:
            swapped.append(pod.pod.name)
    return swapped


async def _swap_pod(pod: ServingPod, serving: ServingTarget, version: PublishedVersion) -> bool:
    if pod.pod.storage_path is None:
        log("swap-skipped", pod=pod.pod.name, why="the volume is not mounted")
        return False
    if await _asleep(pod):
        # vLLM does not refuse a load while it sleeps, but the load is not safe.
        log("swap-skipped", pod=pod.pod.name, why="asleep or paused")
        return False
    outcome = await put_in_service(
        pod.client,
        served_name=serving.served_name,
        version=version.number,
        path=f"{pod.pod.storage_path.rstrip('/')}/versions/{version.number}",
        probe=ProbeSpec(prompt=serving.probe.prompt, max_tokens=serving.probe.max_tokens),
    )
    log(
        "swapped",
        pod=pod.pod.name,
        version=version.number,
        changed=outcome.changed,
        load_seconds=round(outcome.load_seconds, 3),
        flip_seconds=round(outcome.flip_seconds, 3),
    )
    return True


async def _awake(pod: ServingPod) -> bool:
    """Whether its server lives and does not sleep; steps of other adapters may put it to sleep at any time."""
    try:
        return await alive(pod.client) and not await _asleep(pod)
    except VllmError:
        return False


async def _asleep(pod: ServingPod) -> bool:
    try:
        return await pod.client.is_sleeping()
    except RouteMissing:
        return False
