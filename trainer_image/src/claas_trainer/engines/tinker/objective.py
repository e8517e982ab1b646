"""The step's loss on the log-probabilities that the service tells: [T, K + 1] for a sample, where column 0 is the
response token and the others are the support.

The loss depends on the student through these alone, so its gradient is exact: the service takes the derivative of the
loss with respect to each of them as a weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from claas_trainer.sdpo.errors import NonFiniteError
from claas_trainer.sdpo.losses.sdpo import TokenLosses, divergence, sdpo_token_losses
from claas_trainer.sdpo.losses.support import Support, with_tail
from claas_trainer.sdpo.settings import SdpoConfig


@dataclass(frozen=True)
class ScoredSample:
    """A sample of R response tokens with all that the loss compares the student with.

    `support`: [R, K], token ids. `teacher`: [R, K], its log-probabilities there. `old`, `base`: [R],
    log-probabilities of the response tokens when they were sampled (None: as the student's now), and under the base
    model (None without a KL term).
    """

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    support: Tensor
    teacher: Tensor
    old: Tensor | None = None
    base: Tensor | None = None

    @property
    def input_ids(self) -> tuple[int, ...]:
        """What the student reads: all but the last token, [T]."""
        return (*self.prompt_ids, *self.response_ids[:-1])

    def targets(self) -> Tensor:
        """Tokens whose log-probabilities the loss needs after each input token, [T, K + 1]; 0 in the prompt's rows,
        which it does not use."""
        wanted = torch.cat([torch.tensor(self.response_ids).unsqueeze(-1), self.support], dim=-1)
        prompt = wanted.new_zeros(len(self.prompt_ids) - 1, wanted.shape[-1])
        return torch.cat([prompt, wanted])

    def response_rows(self, logprobs: Tensor) -> Tensor:
        """The rows that predict the response, [R, K + 1], of [T, K + 1]."""
        return logprobs[-len(self.response_ids) :]


@dataclass(frozen=True)
class StepFigures:
    """Figures of the loss; means are over all response tokens of the batch, as in `sdpo.step.SdpoMetrics`."""

    loss: float
    divergence: float
    ratio_mean: float
    ratio_max: float
    clipped_fraction: float
    kl_to_base: float | None
    samples: int
    tokens: int


class BatchLoss:
    """The mean loss over all response tokens of a batch, as a function of the student's log-probabilities."""

    def __init__(self, samples: Sequence[ScoredSample], config: SdpoConfig) -> None:
        self.samples = samples
        self._config = config
        self._tokens = sum(len(sample.response_ids) for sample in samples)
        self._before: list[Tensor] = []
        self.figures: StepFigures | None = None
        """Of the last `loss`."""

    def loss(self, logprobs: Sequence[Tensor]) -> Tensor:
        """The batch's loss from the [T, K + 1] of each sample.

        Raises NonFiniteError if the loss or its gradient is not finite. Raised inside the SDK's backward pass this is
        a veto: nothing that was queued behind is done.
        """
        each = [self._token_losses(sample, rows) for sample, rows in zip(self.samples, logprobs, strict=True)]
        loss = torch.cat([losses.loss for losses in each]).sum() / self._tokens
        if not math.isfinite(loss.item()):
            raise NonFiniteError(f"the loss is {loss.item()}: the adapter was not updated; check the samples")
        gradients = torch.autograd.grad(loss, list(logprobs), retain_graph=True)
        if not all(bool(gradient.isfinite().all()) for gradient in gradients):
            raise NonFiniteError(
                "the loss's gradient is NaN or infinite: the adapter was not updated; check the samples"
            )
        self.figures = self._figures(loss.item(), each)
        self._before = [self._measured(sample, rows) for sample, rows in zip(self.samples, logprobs, strict=True)]
        return loss

    def moved(self, logprobs: Sequence[Tensor]) -> tuple[float, float]:
        """KL(before || after) in nats per token over the support and a tail bucket, from the log-probabilities after
        the update: the mean over all response tokens, and the largest mean of a sample.

        It bounds the KL divergence over the whole vocabulary from below: changes among the tokens of the tail do not
        show.
        """
        each = [
            divergence(self._measured(sample, rows), before, 0.0)
            for sample, rows, before in zip(self.samples, logprobs, self._before, strict=True)
        ]
        return torch.cat(each).mean().item(), max(tokens.mean().item() for tokens in each)

    def _token_losses(self, sample: ScoredSample, logprobs: Tensor) -> TokenLosses:
        rows, config = sample.response_rows(logprobs), self._config
        sampled = rows[:, 0].double()
        return sdpo_token_losses(
            with_tail(rows[:, 1:], config.support),
            with_tail(sample.teacher, config.support),
            sampled,
            sampled.detach() if sample.old is None else sample.old.double(),
            alpha=config.alpha,
            is_clip=config.is_clip,
            base=None if sample.base is None else sample.base.double(),
            kl_reg_weight=config.kl_reg_weight,
        )

    def _figures(self, loss: float, each: Sequence[TokenLosses]) -> StepFigures:
        ratio = torch.cat([losses.ratio for losses in each])
        to_base = [losses.kl_to_base for losses in each if losses.kl_to_base is not None]
        return StepFigures(
            loss=loss,
            divergence=torch.cat([losses.divergence for losses in each]).mean().item(),
            ratio_mean=ratio.mean().item(),
            ratio_max=ratio.max().item(),
            clipped_fraction=torch.cat([losses.clipped for losses in each]).double().mean().item(),
            kl_to_base=torch.cat(to_base).mean().item() if to_base else None,
            samples=len(self.samples),
            tokens=self._tokens,
        )

    @staticmethod
    def _measured(sample: ScoredSample, logprobs: Tensor) -> Tensor:
        return with_tail(sample.response_rows(logprobs).detach()[:, 1:], Support.TOP_K_TAIL)
