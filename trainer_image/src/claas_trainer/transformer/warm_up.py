"""A step on two random layers before the pause, so that nothing is compiled or loaded for the first time inside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch

from claas_trainer.batch import StepSample
from claas_trainer.optimizer import OptimizerState
from claas_trainer.step import Schedule, StepConfig, sdpo_step
from claas_trainer.teachers.base import Teacher
from claas_trainer.transformer.model import DecoderModel
from claas_trainer.transformer.plan import Footprint
from claas_trainer.weights.random import RandomWeights
from claas_trainer.weights.shape import ModelShape

# A layer that all of a sequence passes, and the last one, which response tokens alone pass whole.
_LAYERS = 2
_SMALL_VOCABULARY = 2048
_FEW_TOKENS = 16


def warm_up(
    shape: ModelShape,
    dtype: torch.dtype,
    device: torch.device,
    tensors: Mapping[str, torch.Size],
    rank: int,
    config: StepConfig,
    teacher: Teacher,
    schedule: Schedule,
    samples: Sequence[StepSample],
    free_bytes: int,
) -> int:
    """Take a step on layers of this shape with the step's own lengths, or as much of them as `free_bytes` allow; gives
    the tokens of its micro-batch. Products and attention of other sizes may need other kernels, so sizes matter.

    `tensors`: the adapter's, by name.
    """
    names = tuple(f".layers.{index}." for index in range(_LAYERS))
    adapter = {name: size for name, size in tensors.items() if any(part in name for part in names)}
    longest = max(sample.tokens for sample in samples)
    small, size = _fitting(shape, dtype, adapter, rank, teacher, schedule, longest, free_bytes)
    model = DecoderModel(RandomWeights(small, device, dtype, alike=True), adapter, rank, float(rank))
    state = OptimizerState.fresh({name: torch.full(size, 1e-3) for name, size in adapter.items()}, model.layout)
    samples = [_like(sample, size.micro_batch_tokens) for sample in samples]
    for model.checkpointed_layers in (0, _LAYERS):
        sdpo_step(model, samples, config, state, teacher, size)
    return size.micro_batch_tokens


def _like(sample: StepSample, most: int) -> StepSample:
    """A sample of the same lengths, or of a few tokens where there is no room; what the tokens are doesn't matter."""
    if sample.tokens > most:
        return StepSample((0,), (0,), (0,))
    return StepSample(
        (0,) * len(sample.student_prompt_ids), (0,) * len(sample.teacher_prompt_ids), (0,) * len(sample.response_ids)
    )


def _fitting(
    shape: ModelShape,
    dtype: torch.dtype,
    adapter: Mapping[str, torch.Size],
    rank: int,
    teacher: Teacher,
    schedule: Schedule,
    sample_tokens: int,
    free_bytes: int,
) -> tuple[ModelShape, Schedule]:
    """The largest that fits: the vocabulary shrinks first, then the micro-batch, down to one sample, then to a few
    tokens."""
    elements = sum(size.numel() for size in adapter.values())
    tokens, rows = schedule.micro_batch_tokens, schedule.tile_rows
    while True:
        for vocabulary in (shape.vocabulary, min(shape.vocabulary, _SMALL_VOCABULARY)):
            small = dataclasses.replace(shape, layers=_LAYERS, vocabulary=vocabulary)
            matrices = small.layer_elements + (1 if small.tied else 2) * small.head_elements
            resident = matrices * dtype.itemsize
            footprint = Footprint(
                small, dtype.itemsize, resident, elements, rank, len(teacher.networks), teacher.average_rate is not None
            )
            if footprint.peak_bytes(tokens, 1, rows) <= free_bytes or tokens <= _FEW_TOKENS:
                return small, Schedule(tokens, rows)
        at_least = sample_tokens if tokens > sample_tokens else _FEW_TOKENS
        tokens, rows = max(tokens // 2, at_least), max(rows // 2, 1)
