"""The memory planner: how a step is cut into pieces so that it fits, and costs as little time as then possible.

A pure function of the model's shape, the samples' lengths and a number of bytes. What it counts is what `layer`,
`scoring` and `optimizer` really hold; the margin is for what allocators round up.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from claas_trainer.model.shape import ModelShape
from claas_trainer.sdpo.batch import StepSample, micro_batches
from claas_trainer.sdpo.step import Schedule

_MASTER_BYTES = 4
_LOGIT_BYTES = 4
_MARGIN = 1.03
_TILES = (2048, 1024, 512, 256, 128, 64)
_FULL_GRAPH = 12
"""Tensors as wide as the vocabulary that the graph of a loss over all of it holds."""
_MOST_TOKENS = 10_240
"""A larger micro-batch is no quicker: a GPU is full long before. Its memory has to be had and given back all the
same, while serving waits."""
_LAUNCH_TOKENS = 256
"""A micro-batch costs about as much time as so many tokens more, whatever its size."""


@dataclass(frozen=True)
class Footprint:
    """What the planner knows of model and step. `resident_bytes`: the base weights on the device.
    `adapter_elements`: of the adapter. `networks`: how many forwards the
    teacher makes of a prompt. `averaged`: whether one of them has a moving average's weights.
    `padded`: whether attention works on padded copies, because lengths differ."""

    shape: ModelShape
    item_bytes: int
    resident_bytes: int
    adapter_elements: int
    rank: int
    networks: int = 1
    averaged: bool = False
    padded: bool = False
    full: bool = False

    @property
    def kept_bytes(self) -> int:
        """What a layer keeps of a token for the way back."""
        shape = self.shape
        wide = 2 * shape.hidden + shape.qkv_width + 2 * shape.query_width + shape.key_width + 2 * shape.intermediate
        copies = shape.qkv_width + shape.query_width if self.padded else 0
        return self.item_bytes * (wide + copies + 7 * self.rank) + 4 * shape.heads

    @property
    def checkpoint_bytes(self) -> int:
        """What a checkpointed layer keeps of a token."""
        return self.item_bytes * self.shape.hidden

    @property
    def working_bytes(self) -> int:
        """What a token takes beside that while a layer is gone back through."""
        shape = self.shape
        return self.item_bytes * (4 * shape.intermediate + 3 * shape.hidden + shape.qkv_width)

    @property
    def fixed_bytes(self) -> int:
        """What is there all the time: weights, masters, gradient, moments, a moving average, and the adapters as they
        are multiplied, of which the average is a second set."""
        shape = self.shape
        blocks = 3 * shape.qkv_width + 2 * shape.hidden + 4 * shape.intermediate
        stacked = self.item_bytes * (self.adapter_elements + blocks * self.rank * shape.layers)
        vectors, sets = (5, 2) if self.averaged else (4, 1)
        return self.resident_bytes + vectors * _MASTER_BYTES * self.adapter_elements + sets * stacked

    def tile_bytes(self, rows: int) -> int:
        """The logits of a tile: the student's, the teacher's networks', and their gradient in both dtypes."""
        wide = 2 + self.networks + (_FULL_GRAPH if self.full else 0)
        return rows * self.shape.vocabulary * (wide * _LOGIT_BYTES + self.item_bytes)

    def peak_bytes(self, tokens: int, checkpointed_layers: int, tile_rows: int) -> int:
        """The most that a micro-batch of so many tokens, checkpointed and scored so, holds at once."""
        layers = self.shape.layers
        kept = tokens * (
            (layers - checkpointed_layers) * self.kept_bytes + checkpointed_layers * self.checkpoint_bytes
        )
        again = tokens * self.kept_bytes if checkpointed_layers == layers else 0
        beside = max(self.tile_bytes(tile_rows), tokens * self.working_bytes + again)
        features = tokens * self.item_bytes * self.shape.hidden * (2 + self.networks)
        return int(_MARGIN * (self.fixed_bytes + kept + features + beside))


@dataclass(frozen=True)
class MemoryPlan:
    """How a step is taken: the schedule, how many layers are checkpointed, and the device memory it needs in all."""

    schedule: Schedule
    checkpointed_layers: int
    peak_bytes: int


def plan_memory(footprint: Footprint, samples: Sequence[StepSample], available_bytes: int) -> MemoryPlan:
    """The quickest plan that fits into `available_bytes`; where none does, the smallest there is."""
    lengths = {len(x.student_prompt_ids) + len(x.response_ids) for x in samples}
    footprint = dataclasses.replace(footprint, padded=footprint.padded or len(lengths) > 1)
    plans = list(_plans(footprint, samples, available_bytes))
    fitting = [(seconds, plan) for seconds, plan in plans if plan.peak_bytes <= available_bytes]
    if fitting:
        return min(fitting, key=lambda found: found[0])[1]
    return min((plan for _, plan in plans), key=lambda plan: plan.peak_bytes)


def _plans(
    footprint: Footprint, samples: Sequence[StepSample], available_bytes: int
) -> Iterator[tuple[float, MemoryPlan]]:
    """Every size of micro-batch and tile with the fewest checkpointed layers that fit, and its relative cost."""
    total, longest = sum(sample.tokens for sample in samples), max(sample.tokens for sample in samples)
    responses = sum(len(sample.response_ids) for sample in samples)
    layers = footprint.shape.layers
    sizes = {max(longest, math.ceil(total / pieces)) for pieces in range(1, len(samples) + 1)}
    for size in sorted((size for size in sizes if size <= max(_MOST_TOKENS, longest)), reverse=True):
        groups = list(micro_batches(samples, size))
        tokens = max(sum(sample.tokens for sample in group) for group in groups)
        for tile_rows in _TILES:
            least = footprint.peak_bytes(tokens, 0, tile_rows)
            saved = _MARGIN * tokens * (footprint.kept_bytes - footprint.checkpoint_bytes)
            checkpointed = min(layers, max(0, math.ceil((least - available_bytes) / saved)))
            peak = footprint.peak_bytes(tokens, checkpointed, tile_rows)
            # Forward of the teacher and of the student, the way back, and what is computed again.
            passes = 1 + 1 + 1 + _recomputed(footprint.shape) * checkpointed / layers
            tiles = math.ceil(responses / tile_rows) + len(groups)
            cost = passes * (total + _LAUNCH_TOKENS * len(groups)) + tiles * _LAUNCH_TOKENS / layers
            yield cost, MemoryPlan(Schedule(size, tile_rows), checkpointed, peak)


def _recomputed(shape: ModelShape) -> float:
    """The share of a layer's forward that a checkpointed layer makes again: all but the down projection."""
    return 1 - shape.intermediate * shape.hidden / shape.layer_elements
