"""How long a worker may take."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from claas_contract.input import TrainerInput
from claas_contract.outcome import FailureReason
from claas_contract.places import EXECUTION_MODE_VARIABLE
from claas_crds.v1alpha1.engine import EngineName, EngineSpec


@dataclass(frozen=True)
class StepLimit:
    """Longest time of an attempt with an engine whose service may keep it waiting."""

    seconds: int
    field: str
    """The LoraAdapter's field."""
    reason: FailureReason
    """Of an attempt that takes longer."""


def step_limit(document: TrainerInput, environment: Mapping[str, str] = os.environ) -> StepLimit | None:
    """The limit of an attempt; None for engines without a service."""
    engine = document.engine
    mode = environment.get(EXECUTION_MODE_VARIABLE)
    if "engine" not in document.model_fields_set and mode in (EngineName.TINKER, EngineName.MODAL):
        engine = EngineSpec.of(EngineName(mode))
    if engine.tinker is not None:
        seconds, reason = engine.tinker.step_timeout_seconds, FailureReason.SERVICE_UNREACHABLE
    elif engine.modal is not None:
        seconds, reason = engine.modal.step_timeout_seconds, FailureReason.STEP_TIMED_OUT
    else:
        return None
    return StepLimit(seconds, f"spec.engine.{engine.name.value}.stepTimeoutSeconds", reason)
