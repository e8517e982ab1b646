"""How far a step moved the policy: on which response tokens of each sample that is measured, and the measuring.

Serving may wait meanwhile, so that the time is that of a small part of a forward. A sample that is too long for its
share of it is looked at through windows, spread over the responses of the batch: a few response tokens, what stands
right before them, and the sequence's first tokens, without which attention is not itself (arXiv 2309.17453). Policy
before and policy after see the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from claas_trainer.sdpo.batch import StepSample, TokenBatch, ordered
from claas_trainer.sdpo.policy import Network, PolicyModel
from claas_trainer.sdpo.scoring import token_kl

_SHARE = 12
"""One in so many of the batch's tokens goes through the forwards of a measurement ..."""
_MEASURED_TOKENS = 128
"""... or the sample of middling length with so many response tokens, where that is more. Of samples that are looked
at through windows, so many response tokens are compared in all, and at least one of each."""
_FREE_TOKENS = 1024
"""A forward of so few tokens takes hardly longer than its kernels' launches: a batch of one short sample is looked at
whole, since windows would need a second forward."""
_LEAST_WINDOW = 16
_USUAL_WINDOW = 64
_MOST_WINDOWS = 4
_OPENING = 4


@dataclass(frozen=True)
class Window:
    """A part of a sample, or the whole: what the policy is shown, and the response tokens after it at which it is
    compared."""

    sample: int
    context: tuple[int, ...]
    response: tuple[int, ...]
    whole: bool

    @property
    def tokens(self) -> int:
        """Its length."""
        return len(self.context) + len(self.response)


def windows(samples: Sequence[StepSample]) -> list[Window]:
    """At least one for each sample, by its index, those that are whole first. Where they are depends on lengths
    alone. `samples` are in the order of `batch.ordered`."""
    share = _share(samples)
    most = max(_LEAST_WINDOW, share // 2)  # Whole samples have been through a forward already, windows have not.
    count = max(1, min(_MOST_WINDOWS, most // _USUAL_WINDOW))
    found = []
    for index, sample in enumerate(samples):
        if _length(sample) <= max(_LEAST_WINDOW, share):
            found.append(Window(index, sample.student_prompt_ids, sample.response_ids, True))
            continue
        size = min(_MEASURED_TOKENS // len(samples), len(sample.response_ids), most // 4) // count
        for number in range(count):
            # Each sample's are a little further along than those of the sample before it.
            place = (number + (index + 0.5) / len(samples)) / count
            found.append(_window(index, sample, place, max(1, size), most // count))
    return sorted(found, key=lambda window: not window.whole)


def _share(samples: Sequence[StepSample]) -> int:
    """Forward tokens for each sample; what shorter ones do not need is left to the others."""
    middle = samples[(len(samples) - 1) // 2]
    usual = len(middle.student_prompt_ids) + min(_MEASURED_TOKENS, len(middle.response_ids))
    lengths = sorted(map(_length, samples))
    left = max(usual, sum(lengths) // _SHARE, _FREE_TOKENS)
    for others, length in zip(range(len(lengths), 0, -1), lengths, strict=True):
        if length * others > left:
            return left // others
        left -= length
    return lengths[-1]


def _window(index: int, sample: StepSample, place: float, size: int, most: int) -> Window:
    """A window of so many tokens at most; `place`, from 0 to 1, says where in the response."""
    start = int(place * (len(sample.response_ids) - size + 1))
    before = sample.student_prompt_ids + sample.response_ids[:start]
    near = most - size - _OPENING
    if len(before) > _OPENING + near:
        before = before[:_OPENING] + before[-near:]
    return Window(index, before, sample.response_ids[start : start + size], False)


def _length(sample: StepSample) -> int:
    return len(sample.student_prompt_ids) + len(sample.response_ids)


class Distance:
    """Measures how far a step moves a policy: told of the step's own forwards, ready before the update, asked after
    it."""

    def __init__(self, model: PolicyModel, samples: Sequence[StepSample], most_tokens: int, tile_rows: int) -> None:
        """`most_tokens`: of one forward."""
        self._model = model
        self._samples = ordered(samples)
        self._windows = windows(self._samples)
        self._whole = {window.sample for window in self._windows if window.whole}
        self._most_tokens = most_tokens
        self._tile_rows = tile_rows
        self._before: list[Tensor] = []
        self._told = 0

    def tell(self, group: Sequence[StepSample], features: Tensor) -> None:
        """The student's features of a micro-batch, [N, F]; micro-batches come one after the other."""
        row = 0
        for sample in group:
            end = row + len(sample.response_ids)
            if self._told in self._whole:
                self._before.append(features[row:end].clone())
            self._told, row = self._told + 1, end

    def ready(self) -> None:
        """What no forward of the step has shown."""
        self._before += self._features([window for window in self._windows if not window.whole])

    def moved(self) -> tuple[float, float]:
        """KL(before || after) over the whole vocabulary, nats a token: the batch's mean over response tokens, and the
        mean of the sample whose policy moved furthest."""
        after = torch.cat(list(self._features(self._windows)))
        each = token_kl(self._model, torch.cat(self._before), after, self._tile_rows)
        owners = [window.sample for window in self._windows for _ in window.response]
        places = torch.tensor(owners, device=each.device)
        sums = each.new_zeros(len(self._samples)).index_add_(0, places, each)
        means = sums / torch.bincount(places, minlength=len(self._samples))
        weights = torch.tensor([len(sample.response_ids) for sample in self._samples], dtype=means.dtype)
        batch = (means * weights.to(means.device)).sum() / weights.sum().item()
        return batch.item(), means.max().item()

    def _features(self, chosen: Sequence[Window]) -> Iterator[Tensor]:
        group: list[Window] = []
        for window in chosen:
            if group and sum(each.tokens for each in group) + window.tokens > self._most_tokens:
                yield self._forward(group)
                group = []
            group.append(window)
        if group:
            yield self._forward(group)

    def _forward(self, group: Sequence[Window]) -> Tensor:
        contexts, responses = [window.context for window in group], [window.response for window in group]
        return self._model.features(TokenBatch.of(contexts, responses, self._model.device), Network.STUDENT)
