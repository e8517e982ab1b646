"""The interface of a training engine, and what it exchanges with an attempt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from claas_contract.engine import DistillBatchRequestPayload, DistillResponse, StateRef
from claas_trainer.engines.access import GpuNeed, ServingAccess
from claas_trainer.store.content import FileContent
from claas_trainer.store.record import Provenance
from claas_trainer.store.versions import StoredVersion


@dataclass(frozen=True)
class EngineTask:
    """What an engine is told besides the payload."""

    model: Path
    """The base model's folder; without its weights, unless the engine needs them."""
    parent: StoredVersion
    """The version to start from."""
    version: int
    """Number of the version to make."""
    tell_progress: Callable[[str], None]
    """Says how far the step is, such as `micro-batch 3 of 8`; may be called from any thread."""
    access: ServingAccess
    """What the engine may have of serving."""


@dataclass(frozen=True)
class Readiness:
    """What is known when an engine is ready for its step."""

    version_bytes: int
    """Estimated size of the version to be written."""
    gpu: GpuNeed | None = None
    """None where no GPU memory that vLLM holds is needed."""
    device: str = ""
    """The name of the device that the step is taken on, as a version records it; empty where the engine has none."""
    forward: str = ""
    """By which forward, as a version records it; empty where the engine has no choice."""


@dataclass(frozen=True)
class TrainedVersion:
    """What a step left: the files of the new version, by name, how it went, and what it was computed from."""

    files: Mapping[str, FileContent]
    metrics: Mapping[str, float]
    libraries: Mapping[str, str]
    provenance: Provenance | None = None
    state: StateRef | None = None
    """Where the optimiser state is; None when the step left none."""


class TrainingEngine(ABC):
    """One distillation step: prepare -> acquire -> distill -> release -> trained -> close.

    An engine sees token ids alone. What it needs of serving and of this pod stands in
    `claas_contract.engine.ENGINE_NEEDS`: where it needs a device that serving has, the hand-over makes room from
    before `acquire` until after `release`. Everything wrong with the input fails in `prepare`. All methods raise
    TrainerError.
    """

    @abstractmethod
    async def prepare(self, payload: DistillBatchRequestPayload, task: EngineTask) -> Readiness:
        """Make everything ready that can be, while serving goes on."""

    async def acquire(self) -> None:
        """Take the device: weights go there now. Engines without a device do nothing."""
        return

    @abstractmethod
    async def distill(self, payload: DistillBatchRequestPayload) -> DistillResponse:
        """Take one step on the prepared payload; answers the new version's identifier and the metrics."""

    async def release(self) -> None:
        """Give the device back; called after `acquire` in every case, also when it failed."""
        return

    @abstractmethod
    async def trained(self) -> TrainedVersion:
        """The files of the version that `distill` made."""

    async def close(self) -> None:
        """Let go of everything."""
        return
