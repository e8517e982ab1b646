"""The files of versions that training needs: the parent's adapter and optimiser state, and the adapters of earlier
versions, under which old log-probabilities are computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from claas_contract.engine import OWN_FILES
from claas_contract.outcome import FailureReason
from claas_trainer.engines.local.placement import SdpoInput
from claas_trainer.errors import EngineError, InputError
from claas_trainer.forward.weights.finite import is_finite
from claas_trainer.logs import log
from claas_trainer.model.lora import AdapterWeights, read_adapter
from claas_trainer.sdpo.errors import AdapterError, OptimizerStateError
from claas_trainer.sdpo.optimizer import OptimizerState, Part
from claas_trainer.sdpo.parameters import Layout
from claas_trainer.store.content import FileContent
from claas_trainer.store.errors import storage_errors
from claas_trainer.store.record import ADAPTER_CONFIG_FILE, OPTIMIZER_FILES
from claas_trainer.store.tensors import Tensors
from claas_trainer.store.versions import StoredVersion


def read_parent(parent: StoredVersion) -> tuple[AdapterWeights, bytes]:
    """The parent's adapter, and its configuration file, which the new version keeps unchanged."""
    _check_state(parent)
    try:
        with storage_errors(parent.folder):
            adapter, config = read_adapter(parent.folder), (parent.folder / ADAPTER_CONFIG_FILE).read_bytes()
        broken = next((name for name, tensor in adapter.tensors.items() if not is_finite(tensor)), None)
        if broken is not None:
            raise AdapterError(
                f"{parent.folder}: tensor {broken} has values that are NaN or infinite; train from an earlier version"
            )
        return adapter, config
    except AdapterError as error:
        raise EngineError(FailureReason.PARENT_CORRUPT, str(error)) from error


def _check_state(parent: StoredVersion) -> None:
    """Checks that the parent's optimiser state, if it has one, is among its files. Raises InputError."""
    state = parent.record.optimizer_state
    if state in (None, OWN_FILES):
        return
    assert state is not None
    raise InputError(
        f"spec.engine: version {parent.record.number} was made by engine {state.engine}, which keeps its optimiser"
        f" state at {state.uri}, and engine local can't go on from there; train the adapter with that engine, or make"
        " a new one for this engine"
    )


def read_state(parent: StoredVersion, layout: Layout, inputs: SdpoInput, *, pin: bool) -> OptimizerState | None:
    """The parent's optimiser state; None for a version without one, such as the initial one."""
    if parent.record.optimizer_state is None:
        return None
    paths = parent.files(OPTIMIZER_FILES)
    try:
        stored = {name: tensor for path in paths for name, tensor in load_file(path).items()}
        if inputs.teacher.average_rate is None:
            unused = f"{Part.AVERAGE.value}/"
            stored = {name: tensor for name, tensor in stored.items() if not name.startswith(unused)}
        return OptimizerState.from_tensors(stored, layout, pin=pin)
    except (OSError, SafetensorError, OptimizerStateError) as error:
        raise EngineError(FailureReason.PARENT_CORRUPT, f"{parent.folder}: {error}") from error


def state_files(state: OptimizerState) -> dict[str, FileContent]:
    """A file for each vector, so that they are hashed and written concurrently, which shortens publishing."""
    files: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.to_tensors().items():
        part, _, _ = name.partition("/")
        files.setdefault(f"{OPTIMIZER_FILES}_{part}.safetensors", {})[name] = tensor
    return {name: Tensors(tensors, {"format": "pt"}) for name, tensors in files.items()}


@dataclass(frozen=True)
class EarlierVersions:
    """The earlier versions that samples name."""

    adapters: Mapping[int, Mapping[str, Tensor]]
    """Tensors by number and published name, mapped from the files, so that many take no more memory than one."""
    digests: Mapping[int, str]
    """The versions' digests by number, of those in `adapters`."""
    unusable: frozenset[int]
    """The numbers of all others."""

    @classmethod
    def read(cls, versions: Mapping[int, StoredVersion], parent: AdapterWeights) -> EarlierVersions:
        """Read those that fit the parent's adapter; a line in the log says why another one does not. Raises
        StoreError for a fault of the volume."""
        adapters = {number: _read(version, parent) for number, version in versions.items()}
        usable = {number: tensors for number, tensors in adapters.items() if tensors is not None}
        digests = {number: versions[number].record.digest for number in usable}
        return cls(usable, digests, frozenset(versions.keys() - usable.keys()))


def _read(version: StoredVersion, parent: AdapterWeights) -> Mapping[str, Tensor] | None:
    try:
        with storage_errors(version.folder):
            adapter = read_adapter(version.folder, None)
        why = _differs(adapter, parent)
    except AdapterError as error:
        why = str(error)
    if why is None:
        return adapter.tensors
    log("version-unusable", version=version.record.number, why=why)
    return None


def _differs(adapter: AdapterWeights, parent: AdapterWeights) -> str | None:
    """Why the adapter can't take the parent's place in the model; None: it can."""
    if (adapter.shape.rank, adapter.shape.alpha) != (parent.shape.rank, parent.shape.alpha):
        return "it has another rank or alpha than the version to train from"
    shapes = [{name: tensor.shape for name, tensor in each.tensors.items()} for each in (adapter, parent)]
    if shapes[0] != shapes[1]:
        return "it is on other layers than the version to train from"
    if not all(is_finite(tensor) for tensor in adapter.tensors.values()):
        return "it has values that are NaN or infinite"
    return None
