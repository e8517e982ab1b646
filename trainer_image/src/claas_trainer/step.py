"""One SDPO step: from a batch of answers and an adapter to the updated adapter, and how it went.

Knows neither where the base weights came from nor what happens to serving meanwhile. Nothing is random in
it: the same input gives the same bytes on the CPU, in whatever order the samples come.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from claas_trainer.batch import PolicyModel, StepSample, TokenBatch, check_samples, micro_batches
from claas_trainer.losses.sdpo import Support, TokenLosses, k3, sdpo_token_losses, support_logprobs
from claas_trainer.optimizer import AdamWConfig, OptimizerState, adamw_update, load_masters
from claas_trainer.step_errors import InvalidConfigError, NonFiniteError
from claas_trainer.teachers.base import Teacher
from claas_trainer.teachers.frozen import FrozenTeacher


@dataclass(frozen=True)
class StepConfig:
    """The settings of a step.

    `teacher_top_k` is K of the support (the student's top-K). `max_grad_norm` 0 clips nothing.
    `kl_reg_weight` 0 spares the base model's forward. `seed` is recorded with the version and seeds torch,
    for adapters with dropout.

    Raises:
        InvalidConfigError: a value is outside its range.
    """

    learning_rate: float = 3e-5
    alpha: float = 0.5
    is_clip: float = 5.0
    max_grad_norm: float = 1.0
    kl_reg_weight: float = 0.0
    teacher_top_k: int = 100
    support: Support = Support.TOP_K_TAIL
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    micro_batch_size: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = (
            ("learning_rate", self.learning_rate > 0, "above 0"),
            ("alpha", 0 <= self.alpha <= 1, "between 0 and 1"),
            ("is_clip", self.is_clip >= 1, "at least 1"),
            ("max_grad_norm", self.max_grad_norm >= 0, "at least 0"),
            ("kl_reg_weight", self.kl_reg_weight >= 0, "at least 0"),
            ("teacher_top_k", self.teacher_top_k >= 1, "at least 1"),
            ("weight_decay", self.weight_decay >= 0, "at least 0"),
            ("beta1", 0 <= self.beta1 < 1, "at least 0 and below 1"),
            ("beta2", 0 <= self.beta2 < 1, "at least 0 and below 1"),
            ("epsilon", self.epsilon > 0, "above 0"),
            ("micro_batch_size", self.micro_batch_size >= 1, "at least 1"),
        )
        for field, inside, wanted in ranges:
            value = getattr(self, field)
            if not inside or not math.isfinite(value):
                raise InvalidConfigError(f"{field} is {value}: it must be {wanted}")


@dataclass(frozen=True)
class StepMetrics:
    """How a step went; means are over all response tokens of the batch.

    `kl_to_parent` is the k3 estimate of how far this step moved the policy from the one it started with (nats a
    token), on one micro-batch, the one of middling length, because serving waits meanwhile. `kl_to_base` is None
    unless the KL term was on.
    """

    loss: float
    divergence: float
    grad_norm: float
    ratio_mean: float
    ratio_max: float
    clipped_fraction: float
    kl_to_parent: float
    kl_to_base: float | None
    samples: int
    tokens: int


@dataclass(frozen=True)
class StepResult:
    """The optimiser state after the step, the updated float32 masters in it, and the metrics."""

    state: OptimizerState
    metrics: StepMetrics


def sdpo_step(
    model: PolicyModel,
    samples: Sequence[StepSample],
    config: StepConfig,
    state: OptimizerState | None = None,
    teacher: Teacher | None = None,
    on_micro_batch: Callable[[int, int], None] | None = None,
) -> StepResult:
    """One SDPO step on the adapter attached to `model`, whose parameters are updated in place.

    `state`: what the last step left; its masters are loaded into the model first. None starts from the
    adapter as it is attached. `teacher`: the frozen base model by default. `on_micro_batch` is called with a
    micro-batch's number, from 1, and their count before each of them.

    Raises:
        InvalidBatchError: a sample can't be trained on; the message names its index and field.
        OptimizerStateError: the state belongs to another adapter.
        NonFiniteError: a loss or gradient was NaN or infinite. The masters are not updated then.
    """
    check_samples(samples, model.vocabulary_size)
    parameters = model.trainable()
    if state is None:
        state = OptimizerState.fresh(parameters)
    load_masters(parameters, state)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        return _step(
            model, parameters, samples, config, state, teacher or FrozenTeacher(), on_micro_batch or _tell_nobody
        )


def _tell_nobody(number: int, count: int) -> None:
    return


@dataclass
class _Sums:
    """Running sums over tokens, kept on the device until the end so that no micro-batch waits for them."""

    loss: Tensor
    divergence: Tensor
    ratio: Tensor
    ratio_max: Tensor
    clipped: Tensor
    kl_to_base: Tensor

    @classmethod
    def zero(cls, device: torch.device) -> _Sums:
        return cls(*(torch.zeros((), dtype=torch.float64, device=device) for _ in range(6)))

    def add(self, losses: TokenLosses) -> None:
        self.loss += losses.loss.detach().double().sum()
        self.divergence += losses.divergence.detach().double().sum()
        self.ratio += losses.ratio.double().sum()
        self.ratio_max = torch.maximum(self.ratio_max, losses.ratio.double().max())
        self.clipped += losses.clipped.double().sum()
        if losses.kl_to_base is not None:
            self.kl_to_base += losses.kl_to_base.detach().double().sum()


def _step(
    model: PolicyModel,
    parameters: dict[str, torch.nn.Parameter],
    samples: Sequence[StepSample],
    config: StepConfig,
    state: OptimizerState,
    teacher: Teacher,
    on_micro_batch: Callable[[int, int], None],
) -> StepResult:
    for parameter in parameters.values():
        parameter.grad = None
    tokens = sum(len(sample.response_ids) for sample in samples)
    sums = _Sums.zero(model.device)
    groups = list(micro_batches(samples, config.micro_batch_size))
    # The one on which the distance moved is measured, with the log-probabilities of its tokens before the update.
    measured: tuple[TokenBatch, Tensor] | None = None
    for number, group in enumerate(groups, start=1):
        on_micro_batch(number, len(groups))
        batch = TokenBatch.of([x.student_prompt_ids for x in group], [x.response_ids for x in group], model.device)
        losses, sampled = _losses(model, batch, group, config, teacher)
        # Scaled by the whole batch's token count: the sum over micro-batches is the batch's token mean.
        torch.autograd.backward(losses.loss.sum() / tokens)
        sums.add(losses)
        if number == (len(groups) + 1) // 2:
            measured = (batch, sampled)
    loss = sums.loss.item() / tokens
    if not math.isfinite(loss):
        raise NonFiniteError(f"the loss is {loss}: the adapter was not updated; lower learning_rate or is_clip")
    grad_norm = _clip(parameters, config.max_grad_norm)
    after = adamw_update(parameters, state, _adamw(config))
    for parameter in parameters.values():
        parameter.grad = None
    metrics = StepMetrics(
        loss=loss,
        divergence=sums.divergence.item() / tokens,
        grad_norm=grad_norm,
        ratio_mean=sums.ratio.item() / tokens,
        ratio_max=sums.ratio_max.item(),
        clipped_fraction=sums.clipped.item() / tokens,
        kl_to_parent=0.0 if measured is None else _moved(model, *measured),
        kl_to_base=sums.kl_to_base.item() / tokens if config.kl_reg_weight > 0 else None,
        samples=len(samples),
        tokens=tokens,
    )
    return StepResult(after, metrics)


def _losses(
    model: PolicyModel, batch: TokenBatch, group: Sequence[StepSample], config: StepConfig, teacher: Teacher
) -> tuple[TokenLosses, Tensor]:
    """The losses of one micro-batch, and the sampled tokens' log-probabilities, detached; each [N]."""
    hinted = TokenBatch.of(
        [sample.teacher_prompt_ids for sample in group],
        [sample.response_ids for sample in group],
        model.device,
    )
    # The teacher first: its forward leaves no graph behind while the student's is made.
    teacher_logits = teacher.logits(model, hinted)
    base = None
    if config.kl_reg_weight > 0:
        with torch.no_grad(), model.adapter_off():
            base = _token_logprobs(model.response_logits(batch), batch.targets)
    student_logits = model.response_logits(batch)
    sampled = _token_logprobs(student_logits, batch.targets)
    student, taught = support_logprobs(student_logits, teacher_logits, config.support, config.teacher_top_k)
    losses = sdpo_token_losses(
        student,
        taught,
        sampled,
        _old_logprobs(group, sampled.detach()),
        alpha=config.alpha,
        is_clip=config.is_clip,
        base=base,
        kl_reg_weight=config.kl_reg_weight,
    )
    return losses, sampled.detach()


def _token_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """[N, V] and [N] -> [N]."""
    return logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)


def _old_logprobs(group: Sequence[StepSample], own: Tensor) -> Tensor:
    """The recorded log-probabilities, [N], and the policy's own where none were recorded."""
    pieces = []
    for sample, piece in zip(group, torch.split(own, [len(sample.response_ids) for sample in group]), strict=True):
        pieces.append(piece if sample.old_logprobs is None else piece.new_tensor(sample.old_logprobs))
    return torch.cat(pieces)


def _clip(parameters: dict[str, torch.nn.Parameter], max_norm: float) -> float:
    """Scales the gradients down to the global norm; gives the norm before.

    Raises:
        NonFiniteError: the norm is NaN or infinite.
    """
    ordered = [parameters[name] for name in sorted(parameters)]
    norm = torch.nn.utils.get_total_norm([p.grad for p in ordered if p.grad is not None])
    value = float(norm.item())
    if not math.isfinite(value):
        raise NonFiniteError(f"the gradient's norm is {value}: the adapter was not updated; check the samples")
    if max_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(ordered, max_norm, norm)
    return value


def _adamw(config: StepConfig) -> AdamWConfig:
    return AdamWConfig(config.learning_rate, config.weight_decay, config.beta1, config.beta2, config.epsilon)


def _moved(model: PolicyModel, batch: TokenBatch, before: Tensor) -> float:
    """The k3 estimate of KL(policy before || policy now), its mean over the batch's tokens."""
    with torch.no_grad():
        now = _token_logprobs(model.response_logits(batch), batch.targets)
    return k3(before, now).double().mean().item()
