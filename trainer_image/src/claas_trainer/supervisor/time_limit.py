"""How long a worker may take."""

from __future__ import annotations

import os
from collections.abc import Mapping

from claas_contract.input import TrainerInput
from claas_contract.places import EXECUTION_MODE_VARIABLE
from claas_crds.v1alpha1.engine import EngineName, EngineSpec


def step_timeout(document: TrainerInput, environment: Mapping[str, str] = os.environ) -> int | None:
    """Longest time of an attempt with an engine whose service may keep it waiting, in seconds; None for others."""
    engine = document.engine
    if "engine" not in document.model_fields_set and environment.get(EXECUTION_MODE_VARIABLE) == EngineName.TINKER:
        engine = EngineSpec.of(EngineName.TINKER)
    return engine.tinker.step_timeout_seconds if engine.tinker else None
