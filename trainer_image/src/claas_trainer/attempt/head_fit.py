"""Whether an adapter fits the head that it goes on from: its engine, shape and base model must be the head's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from claas_contract.engine import ENGINE_NEEDS
from claas_contract.input import ModelLocation, TrainerInput
from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.engine import EngineName
from claas_crds.v1alpha1.lora import LoraSpec
from claas_trainer.errors import InputError, not_found
from claas_trainer.heavy_imports import first_import_of
from claas_trainer.model.source import find_model
from claas_trainer.paths import Paths
from claas_trainer.store.errors import storage_errors
from claas_trainer.store.record import ADAPTER_CONFIG_FILE
from claas_trainer.store.versions import StoredVersion


def base_name(model: ModelLocation) -> str:
    """Name of the base model in a version's record."""
    return model.repository or model.path or ""


def config_digest(folder: Path) -> str:
    """sha256 of a base model's configuration, independent of the release that wrote the file. Raises InputError."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise not_found(f"{path}: can't be read") from error
    if isinstance(config, dict):
        config.pop("transformers_version", None)
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def check_shape(engine: EngineName, lora: LoraSpec, version: StoredVersion) -> None:
    """Checks that engine and shape are the version's, because a step continues with the version's tensors. Layers
    are compared by name, where both sides name them.

    Raises InputError (ADAPTER_MISMATCH) that names each field that differs, and StoreError.
    """
    _refuse(version, _engine_and_shape(engine, lora, version, None))


def check_fit(
    engine: EngineName, document: TrainerInput, head: StoredVersion, paths: Paths, meant: Callable[[], Sequence[str]]
) -> None:
    """That an adapter that is made on a folder with versions has the head's engine, shape and base model. `meant`
    finds out which layers the adapter means on its base model, which takes a while.

    Raises InputError: ADAPTER_MISMATCH names each field that differs. Raises StoreError, and what `meant` raises.
    """
    shape = _engine_and_shape(engine, document.lora, head, meant)
    _refuse(head, [*shape, *_base_differences(engine, document.model, head, paths)])


def _engine_and_shape(
    engine: EngineName, lora: LoraSpec, version: StoredVersion, meant: Callable[[], Sequence[str]] | None
) -> list[str]:
    """The engine if it is another, since no engine can go on from another one's state; else the shape's fields."""
    record = version.record
    if engine.value != record.engine:
        return [f"spec.engine is {engine.value} and was {record.engine}"]
    if ENGINE_NEEDS[engine].chooses_shape:
        return _difference("rank", lora.rank, record.lora.rank)
    return shape_differences(lora, record.lora, _stored_shape(version), meant)


def _difference(field: str, now: object, then: object) -> list[str]:
    return [] if now == then else [f"spec.lora.{field} is {now} and was {then}"]


def shape_differences(
    lora: LoraSpec, recorded: LoraSpec, stored: Mapping[str, object], meant: Callable[[], Sequence[str]] | None
) -> list[str]:
    """Each differing field of the shape, with both values.

    `stored`: the version's PEFT configuration, which describes its tensors; `recorded`: the shape requested then.
    Differently written targets may mean the same layers: `meant` resolves the current ones; without it they are
    assumed to be the same.
    """
    differences = _difference("rank", lora.rank, stored.get("r", recorded.rank))
    differences += _difference("alpha", lora.alpha, stored.get("lora_alpha", recorded.alpha))
    wanted, asked, made = map(_names, (lora.target_modules, recorded.target_modules, stored.get("target_modules")))
    if wanted in (asked, made) or (meant is None and not _plain(wanted)):
        return differences
    if meant is not None and _names(list(meant())) == made:
        return differences
    differences.append(f"spec.lora.targetModules is {_said(wanted)} and was {_said(made or asked)}")
    return differences


def _names(modules: object) -> object:
    """A list, sorted; anything else unchanged."""
    return tuple(sorted(map(str, modules))) if isinstance(modules, list) else modules


def _plain(modules: object) -> bool:
    """Whether these are layer names in the form that a version stores."""
    return isinstance(modules, tuple) and not any("." in name for name in modules)


def _said(modules: object) -> str:
    if modules is None:
        return "left out"
    return ", ".join(modules) if isinstance(modules, tuple) else str(modules)


def _stored_shape(version: StoredVersion) -> Mapping[str, object]:
    path = version.file(ADAPTER_CONFIG_FILE)
    if path is None:
        return {}
    with storage_errors(path):
        text = path.read_bytes()
    try:
        config = json.loads(text)
    except ValueError:
        return {}
    return config if isinstance(config, Mapping) else {}


def _base_differences(engine: EngineName, model: ModelLocation, version: StoredVersion, paths: Paths) -> list[str]:
    """Compares fingerprints of the weights if both sides have one, because folders can be moved and replaced;
    otherwise names. A pod without the weights has none to compare: where the step is computed it is."""
    record, name = version.record, base_name(model)
    recorded = record.local.base_fingerprint if record.local else ""
    if recorded and model.repository is None and ENGINE_NEEDS[engine].base_weights:
        found = _fingerprint(model, paths)
        if found.partition(":")[0] == recorded.partition(":")[0]:
            same = found == recorded
            said = f"spec.model.source is {name}, and what lies there is not the model of that version"
            return [] if same else [f"{said} (it was {record.base_model})"]
    if name == record.base_model:
        if not record.base_config or model.repository is not None:
            return []
        if config_digest(find_model(model, paths)) == record.base_config:
            return []
        return [f"spec.model.source is {name}, and what lies there has another configuration than the model then"]
    return [f"spec.model.source is {name} and was {record.base_model}"]


def _fingerprint(model: ModelLocation, paths: Paths) -> str:
    with first_import_of("claas_trainer.engines.local.base_model"):
        from claas_trainer.engines.local.base_model import base_fingerprint
        from claas_trainer.model.config_shape import read_shape
        from claas_trainer.sdpo.errors import UnsupportedModelError, WeightsError

    folder = find_model(model, paths)
    try:
        try:
            shape = read_shape(folder)
        except UnsupportedModelError:
            shape = None
        return base_fingerprint(folder, shape)
    except WeightsError as error:
        raise not_found(f"model: {error}") from error


def _refuse(version: StoredVersion, differences: Sequence[str]) -> None:
    if differences:
        raise InputError(
            f"version {version.record.number} in {version.folder.parent} was made with other values:"
            f" {'; '.join(differences)}. Give spec.storage.path another folder to start anew, or make the adapter"
            " with the old values to go on",
            FailureReason.ADAPTER_MISMATCH,
        )
