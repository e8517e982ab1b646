"""Asks vLLM for handles to its weights, for a step that uses them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from claas_contract.outcome import FailureReason
from claas_trainer.errors import ServingError
from claas_trainer.gpu import visible_gpus
from claas_trainer.serving.pods import ServingPod, serving_error
from claas_vllm_client import CompanionStatus, RequestFailed, VllmError


async def exported_weights(
    pods: Sequence[ServingPod], statuses: Sequence[CompanionStatus | None]
) -> Mapping[str, object] | None:
    """The export of the server on this pod's GPU; None without a GPU, where files are mapped instead. Raises
    ServingError: GPU_MISMATCH if no server is on that GPU, WEIGHTS_NOT_SHAREABLE if the server exports nothing.
    """
    ours = {gpu.uuid for gpu in await asyncio.to_thread(visible_gpus)}
    if not ours:
        return None
    for serving_pod, status in zip(pods, statuses, strict=True):
        if status is not None and ours.intersection(status.gpu_uuids):
            return await _export_of(serving_pod)
    raise ServingError(
        FailureReason.GPU_MISMATCH,
        f"no vLLM pod with the companion is on this pod's GPU ({', '.join(sorted(ours))}); give both pods the same"
        " GPU, by one ResourceClaim or by the same node and runtime class",
    )


async def _export_of(serving_pod: ServingPod) -> Mapping[str, object]:
    try:
        return await serving_pod.client.export_weights()
    except RequestFailed as error:
        raise ServingError(
            FailureReason.WEIGHTS_NOT_SHAREABLE,
            f"pod {serving_pod.pod.name}: vLLM exports no weights ({error}); start it with --worker-extension-cls"
            " claas_vllm.WeightExport and VLLM_SERVER_DEV_MODE=1, or choose another hand-over",
        ) from error
    except VllmError as error:
        raise serving_error(serving_pod.pod, error, FailureReason.VLLM_UNREACHABLE) from error
