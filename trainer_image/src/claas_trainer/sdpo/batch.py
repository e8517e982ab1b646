"""Samples as token ids, and packing several of them into one batch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from claas_trainer.sdpo.errors import InvalidBatchError

# Rounding may put the log-probability of a sampled token this far above 0.
_ROUNDING = 1e-3


@dataclass(frozen=True)
class TokenSample:
    """One answer to learn from, as token ids. The response ids are the sampled ones, unchanged.

    `old_logprobs`: log-probabilities of the response tokens when they were sampled. None if unknown: the adapter's
    own before the step are used then, so the importance ratio is 1.

    `version`: the version under which `old_policy` computes log-probabilities that were not recorded; the step needs
    them then.
    """

    student_prompt_ids: tuple[int, ...]
    teacher_prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    old_logprobs: tuple[float, ...] | None = None
    version: int | None = field(default=None, repr=False)

    @property
    def waits_for_logprobs(self) -> bool:
        """Whether its old log-probabilities have to be computed first."""
        return self.version is not None and self.old_logprobs is None

    @property
    def tokens(self) -> int:
        """Length of the longer sequence, student's or teacher's."""
        return max(len(self.student_prompt_ids), len(self.teacher_prompt_ids)) + len(self.response_ids)


@dataclass(frozen=True)
class TokenBatch:
    """Prompts with their responses, concatenated without padding.

    `ids`: [T]. `lengths`: length of each sequence; they sum to T. `rows`: [N], the positions in [T] that predict the
    response tokens, sequence by sequence. `targets`: [N], the response tokens.
    """

    ids: Tensor
    lengths: tuple[int, ...]
    rows: Tensor
    targets: Tensor

    @classmethod
    def of(
        cls, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], device: torch.device
    ) -> TokenBatch:
        """A batch with one sequence for each prompt and its response."""
        ids: list[int] = []
        rows: list[int] = []
        targets: list[int] = []
        lengths = []
        for prompt, response in zip(prompts, responses, strict=True):
            first = len(ids) + len(prompt) - 1
            ids += prompt
            ids += response
            rows += range(first, first + len(response))
            targets += response
            lengths.append(len(prompt) + len(response))
        return cls(_sent(ids, device), tuple(lengths), _sent(rows, device), _sent(targets, device))

    def positions(self) -> Tensor:
        """Position of each token in its sequence, [T]."""
        return torch.cat([torch.arange(length, device=self.ids.device) for length in self.lengths])

    def part(self, chosen: Sequence[int]) -> tuple[TokenBatch, Tensor]:
        """The sequences with these ascending indices, and the indices of their rows among all rows, [n]."""
        lengths = torch.tensor(self.lengths)
        taken = torch.zeros(len(self.lengths), dtype=torch.bool)
        taken[list(chosen)] = True
        # Number of omitted tokens before each sequence.
        gone = torch.where(taken, 0, lengths).cumsum(0).to(self.ids.device)
        owner = torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(self.ids.device)
        of_rows = owner[self.rows]
        kept = taken.to(self.ids.device)
        places = kept[of_rows].nonzero().squeeze(-1)
        rows = self.rows[places] - gone[of_rows[places]]
        part = TokenBatch(self.ids[kept[owner]], tuple(self.lengths[i] for i in chosen), rows, self.targets[places])
        return part, places

    def padded(self) -> tuple[Tensor, Tensor]:
        """The ids as rows padded on the right with token 0, [B, W], and `rows` within the flattened [B * W]."""
        width = max(self.lengths)
        sequence = torch.repeat_interleave(
            torch.arange(len(self.lengths)), torch.tensor(self.lengths), output_size=len(self.ids)
        ).to(self.ids.device)
        places = sequence * width + self.positions()
        padded = self.ids.new_zeros(len(self.lengths) * width)
        padded[places] = self.ids
        return padded.view(-1, width), places[self.rows]


def _sent(values: Sequence[int], device: torch.device) -> Tensor:
    tensor = torch.tensor(values, dtype=torch.long)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def check_samples(samples: Sequence[TokenSample], vocabulary_size: int) -> None:
    """Checks that every sample can be trained on.

    Raises:
        InvalidBatchError: a sample can't; the message names its index and field, never its content.
    """
    if not samples:
        raise InvalidBatchError("samples: empty; a step needs at least one")
    for index, sample in enumerate(samples):
        for name in ("student_prompt_ids", "teacher_prompt_ids", "response_ids"):
            ids: tuple[int, ...] = getattr(sample, name)
            if not ids:
                raise InvalidBatchError(f"samples[{index}].{name} is empty: give at least one token id")
            if min(ids) < 0 or max(ids) >= vocabulary_size:
                raise InvalidBatchError(
                    f"samples[{index}].{name} has a token id outside 0..{vocabulary_size - 1}: "
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
                f"samples[{index}].old_logprobs has an invalid log-probability: each must be finite and at most 0"
            )


def ordered(samples: Sequence[TokenSample]) -> list[TokenSample]:
    """The samples by length; the order depends on their content only."""

    def key(sample: TokenSample) -> tuple[object, ...]:
        old = sample.old_logprobs or ()
        return (sample.tokens, sample.response_ids, sample.student_prompt_ids, sample.teacher_prompt_ids, old)

    return sorted(samples, key=key)


def micro_batches(samples: Sequence[TokenSample], max_tokens: int) -> Iterator[list[TokenSample]]:
    """`ordered` samples in groups of at most this many tokens; a longer sample is a group of its own."""
    group: list[TokenSample] = []
    tokens = 0
    for sample in ordered(samples):
        if group and tokens + sample.tokens > max_tokens:
            yield group
            group, tokens = [], 0
        group.append(sample)
        tokens += sample.tokens
    if group:
        yield group


def digest(samples: Sequence[TokenSample]) -> str:
    """sha256 over the samples' token ids, and their log-probabilities or version, independent of their order."""
    return hashlib.sha256("\n".join(sorted(map(_recorded, samples))).encode()).hexdigest()


def _recorded(sample: TokenSample) -> str:
    # As versions have recorded it from the first on, under the class's name of then.
    recorded = repr(sample).replace(TokenSample.__name__, "StepSample", 1)
    return f"{recorded}@{sample.version}" if sample.waits_for_logprobs else recorded
