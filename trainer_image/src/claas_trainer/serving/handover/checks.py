"""Checks of each server before and after a hand-over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from claas_contract.input import ServingTarget
from claas_contract.outcome import FailureReason
from claas_trainer.engines.access import GpuNeed
from claas_trainer.errors import ServingError
from claas_trainer.logs import log
from claas_trainer.serving.pods import ServingPod, serving_error
from claas_vllm_client import CompanionStatus, ProbeSpec, Refused, RouteMissing, VllmError, verify_in_service

SECRET_SYNC_SECONDS = 120.0
"""How long a refused token is retried; the kubelet usually updates it within 90 s."""
REFUSED_POLL_SECONDS = 1.0
APPLIED_SECONDS = 30.0
"""Time-out for probing adapter and base and for loading the adapter again. The operator retries afterwards."""


async def check_answers(serving_pod: ServingPod) -> CompanionStatus | None:
    """Checks that the pod answers, accepts the token and mounts the volume. Returns the state of its companion, if
    any.

    A refused token is retried for a while: after a rotation the pod's copy of the Secret, or the trainer's, may still
    be old. Raises ServingError.
    """
    pod, client = serving_pod.pod, serving_pod.client
    if pod.storage_path is None:
        raise ServingError(
            FailureReason.INVALID_INPUT,
            f"pod {pod.name}: does not mount the adapter's volume; mount spec.storage.claimName there",
        )
    deadline = time.monotonic() + SECRET_SYNC_SECONDS
    while True:
        try:
            status = await client.companion_status()
            if status is None:
                # Without the companion the request above proves nothing.
                await client.models()
        except Refused as error:
            if not client.renews_token or time.monotonic() > deadline:
                raise serving_error(pod, error, FailureReason.CONTROL_REFUSED) from error
        except VllmError as error:
            raise serving_error(pod, error, FailureReason.VLLM_UNREACHABLE) from error
        else:
            return status
        await asyncio.sleep(REFUSED_POLL_SECONDS)


async def check_awake(serving_pod: ServingPod) -> None:
    """Checks that the pod is awake. Raises ServingError."""
    pod = serving_pod.pod
    try:
        asleep = await serving_pod.client.is_sleeping()
    except RouteMissing as error:
        raise ServingError(FailureReason.PAUSE_FAILED, f"pod {pod.name}: {error}") from error
    except VllmError as error:
        raise serving_error(pod, error, FailureReason.VLLM_UNREACHABLE) from error
    if asleep:
        raise ServingError(
            FailureReason.ALREADY_ASLEEP,
            f"pod {pod.name}: is asleep or paused already, by somebody else, who must wake it (POST /wake_up)",
        )


async def check_applied(pods: Sequence[ServingPod], serving: ServingTarget) -> None:
    """Checks after a wake that each pod applies its adapter, and loads it again if not. Pods that still fail are left
    to the operator."""
    await asyncio.gather(*(_check_applied(pod, serving) for pod in pods))


async def _check_applied(pod: ServingPod, serving: ServingTarget) -> None:
    probe = ProbeSpec(prompt=serving.probe.prompt, max_tokens=serving.probe.max_tokens)
    try:
        async with asyncio.timeout(APPLIED_SECONDS):
            found = await verify_in_service(pod.client, served_name=serving.served_name, probe=probe)
    except (VllmError, TimeoutError) as error:
        log("not-verified", pod=pod.pod.name, error=type(error).__name__)
        return
    log("verified", pod=pod.pod.name, found=found.value)


def holding(
    gpu: GpuNeed | None, pods: Sequence[ServingPod], statuses: Sequence[CompanionStatus | None]
) -> tuple[ServingPod, ...]:
    """The pods that hold, or may hold, the step's GPU; without the companion a server's GPU is unknown. All pods if
    no GPU is needed. Raises ServingError (GPU_MISMATCH) if no pod does.
    """
    if gpu is None:
        return tuple(pods)
    known = [frozenset(status.gpu_uuids) if status else frozenset() for status in statuses]
    found = tuple(pod for pod, uuids in zip(pods, known, strict=True) if not uuids or gpu.uuid in uuids)
    if pods and not found:
        others = ", ".join(sorted(frozenset().union(*known)))
        raise ServingError(
            FailureReason.GPU_MISMATCH,
            f"the trainer has {gpu.uuid} and vLLM has {others}; give both pods the same GPU, by one ResourceClaim"
            " or by the same node and runtime class",
        )
    return found
