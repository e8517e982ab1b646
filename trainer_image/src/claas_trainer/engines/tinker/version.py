"""`tinker.json` of a version, and what a step reads of its parent's."""

from __future__ import annotations

from pydantic import ValidationError

from claas_contract.engine import StateRef
from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.engine import EngineName
from claas_tinker_client.version_file import VERSION_FILE, TinkerVersion
from claas_trainer.errors import EngineError, InputError
from claas_trainer.store.content import Bytes
from claas_trainer.store.errors import storage_errors
from claas_trainer.store.versions import StoredVersion

KEPT_LINEAGE = 64
"""Number of ancestors that `tinker.json` names: the last ones."""


def first_version(base_model: str, rank: int, seed: int) -> TinkerVersion:
    """Version 0: the base model. The first step makes a LoRA of this rank from this seed."""
    return TinkerVersion(base_model=base_model, rank=rank, seed=seed)


def next_version(parent: TinkerVersion, run: str, state_path: str, sampler_path: str) -> TinkerVersion:
    """The version that training run `run` made of `parent`, with its checkpoints."""
    ancestors = parent.lineage if parent.state_path is None else (*parent.lineage, parent.state_path)
    return TinkerVersion(
        base_model=parent.base_model,
        rank=parent.rank,
        seed=parent.seed,
        step=parent.step + 1,
        run=run,
        state_path=state_path,
        sampler_path=sampler_path,
        lineage=ancestors[-KEPT_LINEAGE:],
    )


def version_file(version: TinkerVersion) -> dict[str, Bytes]:
    """The file of a version's folder, by name."""
    return {VERSION_FILE: Bytes(version.model_dump_json(indent=1).encode())}


def state_ref(version: TinkerVersion) -> StateRef | None:
    """Where its optimiser state is; None for version 0, which has none."""
    return None if version.state_path is None else StateRef(engine=EngineName.TINKER.value, uri=version.state_path)


def read_parent(parent: StoredVersion, base_model: str) -> TinkerVersion:
    """What a step starts from. `base_model`: the service's name of the model that the adapter is for now.

    Raises InputError if another engine made the version, or on another base model; EngineError (PARENT_CORRUPT) if
    its file is missing, unreadable or incomplete; StoreError.
    """
    record = parent.record
    if record.engine != EngineName.TINKER.value:
        raise InputError(
            f"spec.engine: version {record.number} was made by engine {record.engine}, which keeps the weights on the"
            " volume, and engine tinker can't go on from there; train the adapter with that engine, or make a new one"
            " for this engine"
        )
    version = _read(parent)
    if version.base_model != base_model:
        raise InputError(
            f"spec.engine.tinker.baseModel is {base_model} and was {version.base_model} for version {record.number};"
            " give spec.storage.path another folder to start anew, or name the old model to go on",
            FailureReason.ADAPTER_MISMATCH,
        )
    return version


def _read(stored: StoredVersion) -> TinkerVersion:
    with storage_errors(stored.folder / VERSION_FILE):
        try:
            version = TinkerVersion.read(stored.folder)
        except FileNotFoundError:
            raise _corrupt(stored, "is missing") from None
        except ValidationError:
            raise _corrupt(stored, "can't be read") from None
    if (version.state_path is None) != (version.sampler_path is None):
        raise _corrupt(stored, "names one of two checkpoints")
    if version.state_path is None and stored.record.parent is not None:
        raise _corrupt(stored, "names no checkpoint")
    return version


def _corrupt(stored: StoredVersion, what: str) -> EngineError:
    return EngineError(
        FailureReason.PARENT_CORRUPT,
        f"version {stored.record.number} in {stored.folder.parent}: {VERSION_FILE} {what}; restore the version from a"
        " backup or go back to an older one",
    )
