"""The interface of a training engine, and what it exchanges with an attempt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from claas_contract.engine import DistillBatchRequestPayload, DistillResponse, StateRef
from claas_contract.input import AdapterIdentity
from claas_contract.jobs import JobIdentity
from claas_crds.v1alpha1.engine import EngineSpec
from claas_crds.v1alpha1.lora import LoraSpec
from claas_trainer.engines.access import GpuNeed, ServingAccess
from claas_trainer.store.content import FileContent
from claas_trainer.store.journal import RunJournal
from claas_trainer.store.record import Provenance
from claas_trainer.store.versions import StoredVersion, VersionStore


@dataclass(frozen=True)
class RemoteTask:
    """Input of an engine that computes elsewhere, besides the token ids."""

    spec: EngineSpec
    """The engine with its settings."""
    lora: LoraSpec
    """Shape of the adapter."""
    base_model: str
    """Name of the base model in a version's record."""
    journal: RunJournal
    """The job's journal: what earlier attempts have asked of the service."""
    job: JobIdentity
    """The job that the step is taken for, and the attempt at it."""
    key_file: Path
    """The file with the service's API key."""
    token_folder: Path
    """The folder with the service's token, where it has an id and a secret."""
    adapter: AdapterIdentity
    """The LoraAdapter."""


@dataclass(frozen=True)
class EngineTask:
    """Input of an engine besides the request."""

    model: Path
    """The base model's folder, with weights only if the engine needs them."""
    parent: StoredVersion
    """The version to start from."""
    version: int
    """Number of the version to make."""
    tell_progress: Callable[[str], None]
    """Reports progress, such as `micro-batch 3 of 8`; thread-safe."""
    access: ServingAccess
    """The engine's access to serving."""
    earlier: Mapping[int, StoredVersion] = field(default_factory=dict)
    """The other versions that samples name, with intact adapters, by number. Old log-probabilities are computed under
    them."""
    remote: RemoteTask | None = None
    """For an engine that computes elsewhere."""


@dataclass(frozen=True)
class EngineReadiness:
    """Properties of a step that are known after `prepare`."""

    version_bytes: int
    """Estimated size of the new version."""
    gpu: GpuNeed | None = None
    """None if no GPU memory of vLLM is needed."""
    device: str = ""
    """Name of the step's device, as in a version's record; empty for an engine without one."""
    forward: str = ""
    """The forward, as in a version's record; empty for an engine without a choice."""
    unusable: frozenset[int] = frozenset()
    """Numbers of earlier versions under which no log-probabilities can be computed, because they do not fit the
    parent: the importance ratio of their samples is 1."""


@dataclass(frozen=True)
class TrainedVersion:
    """Result of a step: the files of the new version by name, its metrics, and its provenance."""

    files: Mapping[str, FileContent]
    metrics: Mapping[str, float]
    libraries: Mapping[str, str]
    provenance: Provenance | None = None
    state: StateRef | None = None
    """Where the optimiser state is; None when the step left none."""
    weights: str | None = None
    """Address of the weights in the engine's service; None if they are in the files alone."""


class TrainingEngine(ABC):
    """Computes one step: prepare -> acquire -> distill -> release -> trained -> close.

    An engine sees only token ids. `claas_contract.engine.ENGINE_NEEDS` declares its needs of serving and of the pod.
    If it needs serving's device, the hand-over makes room from before `acquire` until after `release`. Wrong input
    fails in `prepare`. All methods raise TrainerError.
    """

    @abstractmethod
    async def prepare(self, payload: DistillBatchRequestPayload, task: EngineTask) -> EngineReadiness:
        """Prepare as much as possible while serving goes on."""

    async def acquire(self) -> None:
        """Move the weights to the device. Engines without a device do nothing."""
        return

    @abstractmethod
    async def distill(self, payload: DistillBatchRequestPayload) -> DistillResponse:
        """Take one step on the prepared request; returns the new version's identifier and the metrics."""

    async def release(self) -> None:
        """Free the device; always called after `acquire`, also if it failed."""
        return

    @abstractmethod
    async def trained(self) -> TrainedVersion:
        """The version that `distill` made."""

    async def tidy(self, store: VersionStore, version: int) -> None:
        """Clear away elsewhere what no step needs any more, after this version was published and put into service.
        Raises nothing."""
        return

    async def close(self) -> None:
        """Free all resources."""
        return
