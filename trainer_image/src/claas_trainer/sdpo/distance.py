"""Measures how far a step moved the policy, on a selection of each sample's response tokens.

Serving may be paused meanwhile, so the measurement takes only a small part of the time of a forward pass. A sample
that is too long for its share is measured through windows, spread over the responses of the batch. A window has a few
response tokens, the tokens right before them, and the first tokens of the sequence, which attention needs as a sink
(arXiv 2309.17453). The policies before and after the step see the same windows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from claas_trainer.sdpo.batch import TokenBatch, TokenSample, ordered
from claas_trainer.sdpo.errors import NonFiniteError, PolicyMovedError
from claas_trainer.sdpo.policy import Network, PolicyModel
from claas_trainer.sdpo.scoring import token_kl

_SHARE = 12
"""A measurement runs one in this many of the batch's tokens through the model ..."""
_MEASURED_TOKENS = 128
"""... or, if that is more, the tokens of the sample of median length with this many response tokens. Over all
windows, this many response tokens are compared, and at least one of each sample."""
_FREE_TOKENS = 1024
"""A forward pass of this few tokens takes hardly longer than launching its kernels. A batch of one short sample is
therefore measured whole: windows would need a second forward pass."""
_LEAST_WINDOW = 16
_USUAL_WINDOW = 64
_MOST_WINDOWS = 4
_OPENING = 4


@dataclass(frozen=True)
class Window:
    """A part of a sample, or all of it: the context that the policy sees, and the response tokens after it, at which
    the policies are compared."""

    sample: int
    context: tuple[int, ...]
    response: tuple[int, ...]
    whole: bool

    @property
    def tokens(self) -> int:
        """Its length."""
        return len(self.context) + len(self.response)


def windows(samples: Sequence[TokenSample]) -> list[Window]:
    """At least one window for each sample, by its index; whole samples come first. Their places depend on lengths
    only. `samples` are in the order of `batch.ordered`."""
    share = _share(samples)
    most = max(_LEAST_WINDOW, share // 2)  # The step's own forward passes cover whole samples, but no windows.
    count = max(1, min(_MOST_WINDOWS, most // _USUAL_WINDOW))
    found = []
    for index, sample in enumerate(samples):
        if _length(sample) <= max(_LEAST_WINDOW, share):
            found.append(Window(index, sample.student_prompt_ids, sample.response_ids, True))
            continue
        size = min(_MEASURED_TOKENS // len(samples), len(sample.response_ids), most // 4) // count
        for number in range(count):
            # The windows of each sample lie a little further along than those of the sample before it.
            place = (number + (index + 0.5) / len(samples)) / count
            found.append(_window(index, sample, place, max(1, size), most // count))
    return sorted(found, key=lambda window: not window.whole)


def _share(samples: Sequence[TokenSample]) -> int:
    """Forward tokens for each sample; longer samples get what shorter ones do not need."""
    middle = samples[(len(samples) - 1) // 2]
    usual = len(middle.student_prompt_ids) + min(_MEASURED_TOKENS, len(middle.response_ids))
    lengths = sorted(map(_length, samples))
    left = max(usual, sum(lengths) // _SHARE, _FREE_TOKENS)
    for others, length in zip(range(len(lengths), 0, -1), lengths, strict=True):
        if length * others > left:
            return left // others
        left -= length
    return lengths[-1]


def _window(index: int, sample: TokenSample, place: float, size: int, most: int) -> Window:
    """A window of at most this many tokens; `place`, from 0 to 1, is its position in the response."""
    start = int(place * (len(sample.response_ids) - size + 1))
    before = sample.student_prompt_ids + sample.response_ids[:start]
    near = most - size - _OPENING
    if len(before) > _OPENING + near:
        before = before[:_OPENING] + before[-near:]
    return Window(index, before, sample.response_ids[start : start + size], False)


def _length(sample: TokenSample) -> int:
    return len(sample.student_prompt_ids) + len(sample.response_ids)


def check_distance(moved: float, max_kl: float) -> None:
    """Checks the distance that a step moved a policy, in nats per token; a `max_kl` of 0 sets no limit.

    Raises NonFiniteError if it is not finite, PolicyMovedError if it is above `max_kl`.
    """
    if not math.isfinite(moved):
        raise NonFiniteError("the updated policy is NaN or infinite; lower learning_rate")
    if 0 < max_kl < moved:
        raise PolicyMovedError(
            f"the step moved the policy by {moved:.3g} nats per token and max_kl is {max_kl:g}:"
            " nothing is published; lower learning_rate, or give feedback in more steps"
        )


class Distance:
    """Measures how far a step moves a policy: `tell` for each forward pass of the step, `ready` before the update,
    `moved` after it."""

    def __init__(self, model: PolicyModel, samples: Sequence[TokenSample], most_tokens: int, tile_rows: int) -> None:
        """`most_tokens`: largest number of tokens in one forward pass."""
        self._model = model
        self._samples = ordered(samples)
        self._windows = windows(self._samples)
        self._whole = {window.sample for window in self._windows if window.whole}
        self._most_tokens = most_tokens
        self._tile_rows = tile_rows
        self._before: list[Tensor] = []
        self._told = 0

    def tell(self, group: Sequence[TokenSample], features: Tensor) -> None:
        """Takes the student's features of a micro-batch, [N, F]; called for the micro-batches in order."""
        row = 0
        for sample in group:
            end = row + len(sample.response_ids)
            if self._told in self._whole:
                self._before.append(features[row:end].clone())
            self._told, row = self._told + 1, end

    def ready(self) -> None:
        """Computes the features before the update that the step's forward passes did not yield."""
        self._before += self._features([window for window in self._windows if not window.whole])

    def moved(self) -> tuple[float, float]:
        """KL(before || after) over the whole vocabulary, in nats per token: an estimate of the mean over all response
        tokens of the batch, and the largest mean of a sample."""
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
