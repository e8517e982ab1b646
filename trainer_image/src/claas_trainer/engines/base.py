"""The interface of a training engine, and what it exchanges with an attempt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from claas_contract.input import ModelLocation
from claas_crds.v1alpha1.distill_job import SampleCounts
from claas_crds.v1alpha1.lora_adapter import LoraSpec
from claas_crds.v1alpha1.training import DistillBatchRequestPayload, DistillResponse
from claas_trainer.paths import Paths
from claas_trainer.samples.chat_template import ServerChat
from claas_trainer.store.content import FileContent
from claas_trainer.store.record import StepRecord
from claas_trainer.store.versions import StoredVersion


class WeightAccess(StrEnum):
    """How a step comes by the base model's weights."""

    COPY = "copy"
    """It reads a copy of its own, which is on the device for the length of the step."""
    SHARED = "shared"
    """It computes with weights that are there already: on a GPU those that vLLM serves, on a CPU its files."""


def go_on() -> None:
    """No rest."""


@dataclass(frozen=True)
class StepPlan:
    """What an engine is told besides the payload: the base model, the version to start from, the one to make, and
    whom to tell how far the step is (`micro-batch 3 of 8`; from any thread). `export`: what vLLM's worker extension
    answers when it is asked for its weights, None where it was not. `rest` is called by the thread that computes,
    between parts of the step, a layer of a micro-batch or less often: it may wait, for the sake of what is served
    beside the step. `chat`: how the servers make prompts, None where none is known."""

    model: ModelLocation
    lora: LoraSpec
    parent: StoredVersion
    version: int
    paths: Paths
    tell_progress: Callable[[str], None]
    weights: WeightAccess = WeightAccess.COPY
    export: Mapping[str, object] | None = None
    rest: Callable[[], None] = go_on
    chat: ServerChat | None = None


@dataclass(frozen=True)
class GpuNeed:
    """The GPU that a step needs and how many bytes of it should be free. With `least_bytes` it can be taken too, in
    smaller pieces."""

    uuid: str
    free_bytes: int
    least_bytes: int


@dataclass(frozen=True)
class PreparedStep:
    """What is known when an engine is ready. `gpu` is None when no memory that vLLM holds is needed;
    `version_bytes` estimates the size of the version to be written."""

    counts: SampleCounts
    version_bytes: int
    gpu: GpuNeed | None
    tokens: int = 0
    """Of all samples, prompts and responses; 0 where the engine does not tell."""
    device: str = ""
    """The name of the device that the step is taken on, as a version records it."""
    forward: str = ""
    """By which forward, as a version records it."""


@dataclass(frozen=True)
class TrainedVersion:
    """What a step left: the files of the new version, by name, how it went, and what it was computed from."""

    files: Mapping[str, FileContent]
    metrics: Mapping[str, float]
    libraries: Mapping[str, str]
    step: StepRecord | None = None


class TrainingEngine(ABC):
    """One distillation step: prepare -> acquire -> distill -> release -> trained -> close.

    Serving is paused from before `acquire` until after `release`, unless `pauses_serving` is False: a remote
    engine has nothing to acquire. Everything wrong with the input fails in `prepare`. All methods raise
    TrainerError.
    """

    pauses_serving: bool = True
    """Whether the step needs what vLLM holds."""

    @abstractmethod
    async def prepare(self, payload: DistillBatchRequestPayload, plan: StepPlan) -> PreparedStep:
        """Check the samples and make everything ready that can be, while serving goes on."""

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
