"""The interface between the local engine and its forwards: a model with its adapter, and its way to the device."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from claas_trainer.engines.access import GpuNeed
from claas_trainer.sdpo.batch import TokenSample
from claas_trainer.sdpo.optimizer import OptimizerState
from claas_trainer.sdpo.policy import PolicyModel
from claas_trainer.sdpo.settings import Schedule, SdpoConfig
from claas_trainer.sdpo.teachers.base import Teacher
from claas_trainer.store.record import ForwardKind


@dataclass(frozen=True)
class SdpoInput:
    """Inputs of a step besides model and adapter."""

    samples: tuple[TokenSample, ...]
    config: SdpoConfig
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
    def warm_up_config(self) -> SdpoConfig:
        """Settings of a warm-up step, which must not fail for moving the policy too far."""
        return dataclasses.replace(self.config, learning_rate=SdpoConfig().learning_rate, max_kl=0.0)

    @property
    def first_pair(self) -> list[TokenSample]:
        """One sample with one prompt token and one response token: the smallest possible step."""
        sample = self.samples[0]
        return [TokenSample(sample.student_prompt_ids[:1], sample.teacher_prompt_ids[:1], sample.response_ids[:1])]


@dataclass(frozen=True)
class Fit:
    """Division of the step that fits its device; `residue_bytes`: GPU memory of others."""

    schedule: Schedule
    checkpointed_layers: int = 0
    residue_bytes: int | None = None


class Placement(ABC):
    """Base model and adapter; between `acquire` and `release` they are on the device.

    Creating one locates the weights, and raises EngineError (OUT_OF_MEMORY) if no such step fits the GPU.
    """

    forward: ForwardKind
    model: PolicyModel
    device: torch.device
    dtype: torch.dtype
    """dtype of the base weights on the device."""
    published_dtype: torch.dtype
    """dtype of the published adapter, which is the base model's."""

    @property
    @abstractmethod
    def gpu(self) -> GpuNeed | None:
        """GPU memory that must be free before `acquire`; None on a CPU."""

    @abstractmethod
    def warm_up(self, state: OptimizerState) -> None:
        """Warm-up while serving goes on: load and compile everything that first use would."""

    @abstractmethod
    def acquire(self) -> Fit:
        """Move the weights to the device; returns how the step fits there. Raises torch.OutOfMemoryError."""

    @abstractmethod
    def release(self) -> None:
        """Free the device's memory; may be called in any state."""
