"""Version 0 of the local engine: a LoRA without effect. Reads only the base model's configuration."""

from __future__ import annotations

from pathlib import Path

from claas_contract.input import TrainerInput
from claas_crds.v1alpha1.lora import LoraSpec
from claas_trainer.engines.initial_versions.base import InitialVersion
from claas_trainer.errors import InputError, not_found
from claas_trainer.heavy_imports import first_import_of
from claas_trainer.paths import Paths
from claas_trainer.store.content import Bytes
from claas_trainer.store.record import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE


def initial_version(document: TrainerInput, model: Path, seed: int, paths: Paths) -> InitialVersion:
    """`model`: the base model's folder; `seed`: of the initial weights. Raises InputError."""
    # Imported here, because an adapter that has a version usually does not need them.
    with first_import_of("claas_trainer.model.lora"):
        from claas_trainer.model.config import read_config
        from claas_trainer.model.lora import LoraShape, config_file, new_adapter
        from claas_trainer.sdpo.errors import AdapterError, WeightsError
        from claas_trainer.store.tensors import Tensors

    lora = document.lora
    try:
        adapter = new_adapter(model, LoraShape(lora.rank, lora.alpha, _targets(lora)), seed)
    except AdapterError as error:
        raise InputError(f"lora.targetModules: {error}") from error
    except WeightsError as error:
        raise not_found(f"model: {error}") from error
    weights = Tensors(adapter.tensors, {"format": "pt"}, read_config(model).dtype)
    return InitialVersion(
        {ADAPTER_CONFIG_FILE: Bytes(config_file(adapter.shape)), ADAPTER_WEIGHTS_FILE: weights},
        adapter.shape.target_modules,
    )


def _targets(lora: LoraSpec) -> tuple[str, ...] | str:
    wanted = lora.target_modules
    return wanted if isinstance(wanted, str) else tuple(wanted or ())
