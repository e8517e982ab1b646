"""Warm-up before the pause: uses everything once that is compiled, loaded or planned on first use, in the sizes of
the step, by which kernels are chosen.

Little memory is free while serving goes on. The warm-up therefore uses the fewest layers that cover every case and,
if even that does not fit, single products.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch

from claas_trainer.forward.transformer.adapters import AdapterMap
from claas_trainer.forward.transformer.attention import Attention, Packing
from claas_trainer.forward.transformer.lora import add_gradients, lora_backward, lora_forward
from claas_trainer.forward.transformer.model import DecoderModel
from claas_trainer.forward.transformer.plan import Footprint
from claas_trainer.forward.weights.layout import layer_shapes
from claas_trainer.forward.weights.random import RandomWeights
from claas_trainer.model.shape import ModelShape
from claas_trainer.sdpo.batch import TokenSample, micro_batches
from claas_trainer.sdpo.optimizer import OptimizerState
from claas_trainer.sdpo.settings import Schedule, SdpoConfig
from claas_trainer.sdpo.step import sdpo_step
from claas_trainer.sdpo.teachers.base import Teacher

# An inner layer, which computes all positions, and the last layer, which computes response positions only.
_LAYERS = 2
_SMALL_VOCABULARY = 2048
_FEW_TOKENS = 16


@dataclasses.dataclass(frozen=True)
class WarmUp:
    """Warm-up for a model, an adapter and a step. `tensors`: the adapter's, by name."""

    shape: ModelShape
    dtype: torch.dtype
    device: torch.device
    tensors: Mapping[str, torch.Size]
    rank: int
    config: SdpoConfig
    teacher: Teacher
    schedule: Schedule
    samples: Sequence[TokenSample]

    def run(self, free_bytes: int) -> None:
        """Take a step on two random layers with the step's sizes, or with the largest that fit."""
        shape, schedule = self._fitting(free_bytes)
        model = DecoderModel(RandomWeights(shape, self.device, self.dtype, alike=True), self._adapter, self.rank, 1.0)
        masters = {name: torch.full(size, 1e-3) for name, size in self._adapter.items()}
        state = OptimizerState.fresh(masters, model.layout)
        samples = [_like(sample, schedule.micro_batch_tokens) for sample in self.samples]
        for model.checkpointed_layers in (0, _LAYERS):
            sdpo_step(model, samples, self.config, state, self.teacher, schedule)
        if schedule != self.schedule:
            for group in micro_batches(self.samples, self.schedule.micro_batch_tokens):
                self._one_by_one(group)

    @property
    def _adapter(self) -> dict[str, torch.Size]:
        names = tuple(f".layers.{index}." for index in range(_LAYERS))
        return {name: size for name, size in self.tensors.items() if any(part in name for part in names)}

    def _fitting(self, free_bytes: int) -> tuple[ModelShape, Schedule]:
        """The largest step that fits: first a smaller vocabulary, then a smaller micro-batch, down to one sample,
        then a few tokens."""
        shape, tokens, rows = self.shape, self.schedule.micro_batch_tokens, self.schedule.tile_rows
        longest = max(sample.tokens for sample in self.samples)
        while True:
            for vocabulary in (shape.vocabulary, min(shape.vocabulary, _SMALL_VOCABULARY)):
                small = dataclasses.replace(shape, layers=_LAYERS, vocabulary=vocabulary)
                matrices = small.layer_elements + (1 if small.tied else 2) * small.head_elements
                footprint = Footprint(
                    small,
                    self.dtype.itemsize,
                    matrices * self.dtype.itemsize,
                    sum(size.numel() for size in self._adapter.values()),
                    self.rank,
                    len(self.teacher.networks),
                    self.teacher.average_rate is not None,
                    padded=True,
                )
                if footprint.peak_bytes(tokens, 1, rows) <= free_bytes or tokens <= _FEW_TOKENS:
                    return small, Schedule(tokens, rows)
            tokens, rows = max(tokens // 2, longest if tokens > longest else _FEW_TOKENS), max(rows // 2, 1)

    def _one_by_one(self, group: Sequence[TokenSample]) -> None:
        """Products and attention in a micro-batch's own sizes, one at a time, which takes the memory of one."""
        responses = [len(sample.response_ids) for sample in group]
        student = [len(x.student_prompt_ids) + y for x, y in zip(group, responses, strict=True)]
        teacher = [len(x.teacher_prompt_ids) + y for x, y in zip(group, responses, strict=True)]
        for lengths, keep in ((teacher, False), (student, False), (student, True)):
            self._attention(lengths, keep=keep)
        for rows in {sum(student), sum(teacher), sum(responses)}:
            self._products(rows)

    def _attention(self, lengths: Sequence[int], *, keep: bool) -> None:
        shape, rows = self.shape, sum(lengths)
        # With the strides of a layer, because plans depend on strides too.
        rotated = self._zeros(rows, shape.heads + shape.kv_heads, shape.head_dim)
        qkv = self._zeros(rows, shape.heads + 2 * shape.kv_heads, shape.head_dim)
        q, k, v = rotated[:, : shape.heads], rotated[:, shape.heads :], qkv[:, shape.heads + shape.kv_heads :]
        attention = Attention(q, k, v, Packing(lengths, self.device), keep=keep)
        if keep:
            attention.backward(torch.zeros_like(attention.output))

    def _products(self, rows: int) -> None:
        one = dataclasses.replace(self.shape, layers=1)
        tensors = {name: size for name, size in self._adapter.items() if ".layers.0." in name}
        adapters = AdapterMap(one, tensors, self.rank, 1.0)
        flat = torch.zeros(adapters.layout.elements, dtype=torch.float32, device=self.device)
        (loras,) = adapters.loras(flat, self.dtype, flat.clone())
        sizes = layer_shapes(self.shape)
        for name in ("qkv", "o", "gate_up", "down"):
            weight = self._zeros(*sizes[name])
            x = self._zeros(rows, weight.shape[1])
            lora = getattr(loras, name)
            y, down = lora_forward(x, weight, None, lora)
            _, of_down = lora_backward(y, weight, lora)
            add_gradients(lora, x, down, y, of_down)
            lora_forward(x, weight, None, None)

    def _zeros(self, *size: int) -> torch.Tensor:
        return torch.zeros(size, dtype=self.dtype, device=self.device)


def _like(sample: TokenSample, most: int) -> TokenSample:
    """A sample of the same lengths, or of a few tokens if memory is short. The tokens themselves do not matter."""
    if sample.tokens > most:
        return TokenSample((0,), (0,), (0,))
    return TokenSample(
        (0,) * len(sample.student_prompt_ids), (0,) * len(sample.teacher_prompt_ids), (0,) * len(sample.response_ids)
    )
