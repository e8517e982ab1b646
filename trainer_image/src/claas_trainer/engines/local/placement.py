"""The interface between the local engine and its forwards: a model with its adapter, and its way to the device."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from claas_trainer.engines.access import GpuNeed
from claas_trainer.sdpo.batch import StepSample
from claas_trainer.sdpo.optimizer import OptimizerState
from claas_trainer.sdpo.policy import PolicyModel
from claas_trainer.sdpo.step import Schedule, StepConfig
from claas_trainer.sdpo.teachers.base import Teacher
from claas_trainer.store.record import ForwardKind


@dataclass(frozen=True)
class SdpoInput:
    """What a step is taken with, besides model and adapter."""

    samples: tuple[StepSample, ...]
    config: StepConfig
    teacher: Teacher

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(sample.tokens for sample in self.samples)

    def token_ids(self) -> torch.Tensor:
        """All of them, [N]."""
        each = (x.student_prompt_ids + x.teacher_prompt_ids + x.response_ids for x in self.samples)
        return torch.tensor([token for ids in each for token in ids], dtype=torch.int64)

    @property
    def warm_up_config(self) -> StepConfig:
        """The settings for a step that is thrown away, which should not fail by going too far."""
        return dataclasses.replace(self.config, learning_rate=StepConfig().learning_rate, max_kl=0.0)

    @property
    def first_pair(self) -> list[StepSample]:
        """One sample of one token, its prompt one too: the smallest step there is."""
        sample = self.samples[0]
        return [StepSample(sample.student_prompt_ids[:1], sample.teacher_prompt_ids[:1], sample.response_ids[:1])]


@dataclass(frozen=True)
class Fit:
    """How the step is cut to fit its device as that is found; `residue_bytes`: what others hold of a GPU."""

    schedule: Schedule
    checkpointed_layers: int = 0
    residue_bytes: int | None = None


class Placement(ABC):
    """Base model and adapter, ready to be computed with; between `acquire` and `release` they are on the device.

    Making one finds its weights, and says with EngineError (OUT_OF_MEMORY) that no step of this kind fits the GPU.
    """

    forward: ForwardKind
    model: PolicyModel
    device: torch.device
    dtype: torch.dtype
    """Of the base weights on the device."""
    published_dtype: torch.dtype
    """What the adapter's tensors are published in: the base model's own."""

    @property
    @abstractmethod
    def gpu(self) -> GpuNeed | None:
        """What must be free before `acquire`; None on a CPU."""

    @abstractmethod
    def warm_up(self, state: OptimizerState) -> None:
        """Have everything loaded and compiled that is needed for the first time, while serving goes on."""

    @abstractmethod
    def acquire(self) -> Fit:
        """Have the weights on the device, and say how the step fits there. Raises torch.OutOfMemoryError."""

    @abstractmethod
    def release(self) -> None:
        """Give the device's memory back; may be called in any state."""
