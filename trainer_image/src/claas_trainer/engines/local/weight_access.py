"""Chooses the source of base weights for the trainer's own forward, by access and device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from claas_contract.outcome import FailureReason
from claas_trainer.engines.access import ServingAccess, WeightAccess
from claas_trainer.errors import EngineError
from claas_trainer.forward.weights.host import HostWeights
from claas_trainer.forward.weights.mapped import MappedWeights
from claas_trainer.forward.weights.shared import SharedWeights, parse_export
from claas_trainer.forward.weights.source import WeightSource
from claas_trainer.model.shape import ModelShape
from claas_trainer.sdpo.errors import WeightsError


def open_weights(
    access: ServingAccess, folder: Path, shape: ModelShape, device: torch.device, fingerprint: str
) -> WeightSource:
    """The source that the hand-over allows; `fingerprint` is that of the model's files. Raises WeightsError, or
    EngineError if it is not available.
    """
    if access.weights is not WeightAccess.SHARED:
        return HostWeights.read(folder, shape, device)
    if device.type == "cpu":
        return MappedWeights(folder, shape)
    return _served_weights(access.export, shape, device, fingerprint.partition(":")[2])


def _served_weights(
    export: Mapping[str, object] | None, shape: ModelShape, device: torch.device, digest: str
) -> WeightSource:
    if export is None:
        raise EngineError(
            FailureReason.WEIGHTS_NOT_SHAREABLE,
            "vLLM exports no weights; start it with --worker-extension-cls claas_vllm.WeightExport, or choose another"
            " hand-over",
        )
    try:
        return SharedWeights(shape, device, parse_export(export), digest)
    except WeightsError as error:
        raise EngineError(FailureReason.WEIGHTS_NOT_SHAREABLE, str(error)) from error
