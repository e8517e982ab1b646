"""The memory planner: divides a step into pieces so that it fits into memory and takes as little time as possible.

A pure function of the model's shape, the samples' lengths and a number of bytes. It counts the tensors that `layer`,
`scoring` and `optimizer` hold; a margin allows for the rounding of allocators.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from claas_trainer.model.shape import ModelShape
from claas_trainer.sdpo.batch import TokenSample, micro_batches
from claas_trainer.sdpo.settings import Schedule

_MASTER_BYTES = 4
_LOGIT_BYTES = 4
_MARGIN = 1.03
_TILES = (2048, 1024, 512, 256, 128, 64)
_FULL_GRAPH = 12
"""Number of vocabulary-wide tensors in the graph of a loss over the full vocabulary."""
_MOST_TOKENS = 10_240
"""A larger micro-batch is no faster, because the GPU is saturated long before; but allocating and freeing its memory
takes time while serving is paused."""
_LAUNCH_TOKENS = 256
"""Fixed cost of a micro-batch, as a number of tokens that take the same time."""


@dataclass(frozen=True)
class Footprint:
    """Properties of model and step that decide the memory needed. `resident_bytes`: size of the base weights on the
    device. `adapter_elements`: size of the adapter. `networks`: number of forward passes of the teacher for each
    prompt. `averaged`: whether one of them uses a moving average's weights. `padded`: whether attention works on
    padded copies because lengths differ."""

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
        """Bytes per token that a layer saves for the backward pass."""
        shape = self.shape
        wide = 2 * shape.hidden + shape.qkv_width + 2 * shape.query_width + shape.key_width + 2 * shape.intermediate
        copies = shape.qkv_width + shape.query_width if self.padded else 0
        return self.item_bytes * (wide + copies + 7 * self.rank) + 4 * shape.heads

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes per token that a checkpointed layer saves."""
        return self.item_bytes * self.shape.hidden

    @property
    def working_bytes(self) -> int:
        """Further bytes per token during a layer's backward pass."""
        shape = self.shape
        return self.item_bytes * (4 * shape.intermediate + 3 * shape.hidden + shape.qkv_width)

    @property
    def fixed_bytes(self) -> int:
        """Bytes in use throughout: weights, master weights, gradient, moments, moving average, and the adapters in
        the dtype of the products, twice with an average."""
        shape = self.shape
        blocks = 3 * shape.qkv_width + 2 * shape.hidden + 4 * shape.intermediate
        stacked = self.item_bytes * (self.adapter_elements + blocks * self.rank * shape.layers)
        vectors, sets = (5, 2) if self.averaged else (4, 1)
        return self.resident_bytes + vectors * _MASTER_BYTES * self.adapter_elements + sets * stacked

    def tile_bytes(self, rows: int) -> int:
        """Bytes of a tile's logits: the student's, those of the teacher's networks, and their gradient in both
        dtypes."""
        wide = 2 + self.networks + (_FULL_GRAPH if self.full else 0)
        return rows * self.shape.vocabulary * (wide * _LOGIT_BYTES + self.item_bytes)

    def peak_bytes(self, tokens: int, checkpointed_layers: int, tile_rows: int) -> int:
        """Peak bytes of a micro-batch of this many tokens, with this checkpointing and tile size."""
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
    """Schedule of a step, number of checkpointed layers, and total device memory needed."""

    schedule: Schedule
    checkpointed_layers: int
    peak_bytes: int


def plan_memory(footprint: Footprint, samples: Sequence[TokenSample], available_bytes: int) -> MemoryPlan:
    """The fastest plan that fits into `available_bytes`; the smallest one if none fits."""
    lengths = {len(x.student_prompt_ids) + len(x.response_ids) for x in samples}
    footprint = dataclasses.replace(footprint, padded=footprint.padded or len(lengths) > 1)
    plans = list(_plans(footprint, samples, available_bytes))
    fitting = [(seconds, plan) for seconds, plan in plans if plan.peak_bytes <= available_bytes]
    if fitting:
        return min(fitting, key=lambda found: found[0])[1]
    return min((plan for _, plan in plans), key=lambda plan: plan.peak_bytes)


def _plans(
    footprint: Footprint, samples: Sequence[TokenSample], available_bytes: int
) -> Iterator[tuple[float, MemoryPlan]]:
    """All sizes of micro-batch and tile, each with the fewest checkpointed layers that fit, and their relative
    cost."""
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
            # Forward of teacher and student, backward, and recomputation.
            passes = 1 + 1 + 1 + _recomputed(footprint.shape) * checkpointed / layers
            tiles = math.ceil(responses / tile_rows) + len(groups)
            cost = passes * (total + _LAUNCH_TOKENS * len(groups)) + tiles * _LAUNCH_TOKENS / layers
            yield cost, MemoryPlan(Schedule(size, tile_rows), checkpointed, peak)


def _recomputed(shape: ModelShape) -> float:
    """Share of a layer's forward pass that checkpointing repeats: all but the down projection."""
    return 1 - shape.intermediate * shape.hidden / shape.layer_elements
