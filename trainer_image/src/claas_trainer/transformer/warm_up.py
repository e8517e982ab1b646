"""A step on one random layer before the pause, so that nothing is compiled or loaded for the first time inside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch

from claas_trainer.batch import StepSample
from claas_trainer.optimizer import OptimizerState
from claas_trainer.step import Schedule, StepConfig, sdpo_step
from claas_trainer.teachers.base import Teacher
from claas_trainer.transformer.model import DecoderModel
from claas_trainer.transformer.plan import Footprint
from claas_trainer.weights.random import RandomWeights
from claas_trainer.weights.shape import ModelShape

_SMALL_VOCABULARY = 2048


def warm_up(
    shape: ModelShape,
    dtype: torch.dtype,
    device: torch.device,
    tensors: Mapping[str, torch.Size],
    rank: int,
    config: StepConfig,
    teacher: Teacher,
    schedule: Schedule,
    sample_tokens: int,
    free_bytes: int,
) -> int:
    """Take a step on one layer of this shape with the step's own sizes, or as much of them as `free_bytes` allow;
    gives the tokens of its micro-batch. Matrix products of other sizes may need other kernels, so sizes matter."""
    first = {name: size for name, size in tensors.items() if ".layers.0." in name}
    elements = sum(size.numel() for size in first.values())
    for vocabulary in (shape.vocabulary, _SMALL_VOCABULARY):
        one = dataclasses.replace(shape, layers=1, vocabulary=min(vocabulary, shape.vocabulary))
        resident = (one.layer_elements + (1 if one.tied else 2) * one.head_elements) * dtype.itemsize
        footprint = Footprint(one, dtype.itemsize, resident, elements, rank, len(teacher.networks))
        tokens, rows = schedule.micro_batch_tokens, schedule.tile_rows
        while tokens > sample_tokens and footprint.peak_bytes(tokens, 1, rows) > free_bytes:
            tokens, rows = max(tokens // 2, sample_tokens), max(rows // 2, 1)
        if footprint.peak_bytes(tokens, 1, rows) <= free_bytes:
            break
    else:
        tokens = rows = 8
    length = min(sample_tokens, tokens)
    half = max(1, length // 2)
    sample = StepSample((0,) * max(1, length - half), (0,) * max(1, length - half), (0,) * half)
    source = RandomWeights(one, device, dtype, seed=0)
    model = DecoderModel(source, first, rank, float(rank))
    state = OptimizerState.fresh({name: torch.full(size, 1e-3) for name, size in first.items()}, model.layout)
    samples = [sample] * max(1, tokens // length)
    for checkpointed in (0, 1):
        model.checkpointed_layers = checkpointed
        sdpo_step(model, samples, config, state, teacher, Schedule(tokens, rows))
    return tokens
