"""Engines by name. An engine's module, and with it its SDK, is imported only when it is chosen."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from claas_contract.input import TrainerInput
from claas_contract.outcome import FailureReason
from claas_contract.places import EXECUTION_MODE_VARIABLE
from claas_crds.v1alpha1.engine import EngineName
from claas_trainer.engines.base import TrainingEngine
from claas_trainer.engines.initial_versions.base import InitialVersion
from claas_trainer.errors import EngineError, InputError
from claas_trainer.paths import Paths

ENGINES: Mapping[EngineName, tuple[str, str]] = {
    EngineName.LOCAL: ("claas_trainer.engines.local.engine", "LocalEngine"),
    EngineName.TINKER: ("claas_trainer.engines.tinker.engine", "TinkerEngine"),
    EngineName.MODAL: ("claas_trainer.engines.modal.engine", "ModalEngine"),
}
INITIAL_VERSIONS: Mapping[EngineName, str] = {
    EngineName.LOCAL: "claas_trainer.engines.initial_versions.local",
    EngineName.TINKER: "claas_trainer.engines.initial_versions.tinker",
    EngineName.MODAL: "claas_trainer.engines.initial_versions.modal",
}
"""Modules whose `initial_version` makes version 0."""


def chosen_engine(document: TrainerInput, environment: Mapping[str, str] = os.environ) -> EngineName:
    """The input's engine, or else that of the execution mode. Raises InputError for an unknown name."""
    mode = environment.get(EXECUTION_MODE_VARIABLE)
    if "engine" in document.model_fields_set or not mode:
        return document.engine.name
    try:
        return EngineName(mode)
    except ValueError:
        names = ", ".join(name.value for name in EngineName)
        raise InputError(f"{EXECUTION_MODE_VARIABLE}: {mode!r} is no engine; there are {names}") from None


def make_engine(name: EngineName) -> TrainingEngine:
    """A new engine. Raises EngineError if it is not available in this image."""
    module_name, class_name = ENGINES[name]
    with _available(name):
        engine: type[TrainingEngine] = getattr(import_module(module_name), class_name)
    return engine()


def initial_version(name: EngineName, document: TrainerInput, model: Path, seed: int, paths: Paths) -> InitialVersion:
    """An engine's version 0 on the base model in folder `model`; `seed`: of the initial weights. Raises
    TrainerError."""
    with _available(name):
        made: InitialVersion = import_module(INITIAL_VERSIONS[name]).initial_version(document, model, seed, paths)
    return made


@contextmanager
def _available(name: EngineName) -> Iterator[None]:
    """Context manager around an engine's imports. Raises EngineError if the image lacks one."""
    try:
        yield
    except ImportError as error:
        raise EngineError(
            FailureReason.ENGINE_UNAVAILABLE,
            f"engine {name.value}: this image lacks {error.name}; use an image that has it, or another engine",
        ) from error
