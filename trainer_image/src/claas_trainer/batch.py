"""Samples as token ids, and how several of them become one padded batch for a model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from claas_trainer.step_errors import InvalidBatchError

# A sampled token's log-probability may come out this far above 0 by rounding.
_ROUNDING = 1e-3


@dataclass(frozen=True)
class StepSample:
    """One answer to learn from, as token ids; the response's ids are the sampled ones, taken as they are.

    `old_logprobs`: log-probabilities of the response tokens when they were sampled; None when they are not
    known, and then the adapter's own before the step count (ratio 1).
    """

    student_prompt_ids: tuple[int, ...]
    teacher_prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    old_logprobs: tuple[float, ...] | None = None


@dataclass(frozen=True)
class TokenBatch:
    """Prompts with their responses, padded on the right.

    `ids`: [B, T]. `positions`: [N], indices into the flattened [B * T] where each response token is
    predicted, sample by sample. `targets`: [N], the response tokens.
    """

    ids: Tensor
    positions: Tensor
    targets: Tensor

    @classmethod
    def of(
        cls, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], device: torch.device
    ) -> TokenBatch:
        """One row for each prompt and its response. Padding is token 0: nothing can see it."""
        width = max(len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True))
        ids = torch.zeros((len(prompts), width), dtype=torch.long)
        positions = []
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            ids[row, : len(prompt) + len(response)] = torch.tensor([*prompt, *response])
            first = row * width + len(prompt) - 1
            positions.append(torch.arange(first, first + len(response)))
        targets = torch.tensor([token for response in responses for token in response], dtype=torch.long)
        return cls(ids.to(device), torch.cat(positions).to(device), targets.to(device))


class PolicyModel(Protocol):
    """What a step needs of a causal language model with an adapter attached."""

    @property
    def device(self) -> torch.device:
        """Where batches belong."""

    @property
    def vocabulary_size(self) -> int:
        """How many tokens the head scores."""

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """The adapter's parameters by their published names, float32."""

    def response_logits(self, batch: TokenBatch) -> Tensor:
        """Logits at `batch.positions`, [N, V], float32, with a graph to the adapter if gradients are on."""

    def adapter_off(self) -> AbstractContextManager[None]:
        """While entered, the model is the base model alone."""


def check_samples(samples: Sequence[StepSample], vocabulary_size: int) -> None:
    """That every sample can be trained on.

    Raises:
        InvalidBatchError: the first that can't; the message names its index and field, never its content.
    """
    if not samples:
        raise InvalidBatchError("samples: there are none; a step needs at least one")
    for index, sample in enumerate(samples):
        for field in ("student_prompt_ids", "teacher_prompt_ids", "response_ids"):
            ids: tuple[int, ...] = getattr(sample, field)
            if not ids:
                raise InvalidBatchError(f"samples[{index}].{field} is empty: give at least one token id")
            if min(ids) < 0 or max(ids) >= vocabulary_size:
                raise InvalidBatchError(
                    f"samples[{index}].{field} has a token id outside 0..{vocabulary_size - 1}: "
                    "tokenise with the model's own tokenizer"
                )
        old = sample.old_logprobs
        if old is not None and len(old) != len(sample.response_ids):
            raise InvalidBatchError(
                f"samples[{index}].old_logprobs has {len(old)} values for {len(sample.response_ids)} "
                "response tokens: there must be one for each"
            )
        if old is not None and not all(math.isfinite(value) and value <= _ROUNDING for value in old):
            raise InvalidBatchError(
                f"samples[{index}].old_logprobs has a value that is no log-probability: each must be finite "
                "and at most 0"
            )


def micro_batches(samples: Sequence[StepSample], size: int) -> Iterator[list[StepSample]]:
    """Samples of like length together, in an order that depends on their content alone."""

    def key(sample: StepSample) -> tuple[object, ...]:
        length = len(sample.teacher_prompt_ids) + len(sample.response_ids)
        old = sample.old_logprobs or ()
        return (length, sample.response_ids, sample.student_prompt_ids, sample.teacher_prompt_ids, old)

    ordered = sorted(samples, key=key)
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]
