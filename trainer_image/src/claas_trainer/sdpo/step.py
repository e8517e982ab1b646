"""One SDPO step: from a batch of answers and an adapter to the updated adapter and metrics.

Independent of the source of the base weights and of serving. Deterministic: on the CPU the same input gives the same
bytes, whatever the order of the samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from claas_trainer.sdpo.batch import TokenBatch, TokenSample, check_samples, micro_batches
from claas_trainer.sdpo.distance import Distance, check_distance
from claas_trainer.sdpo.errors import InvalidBatchError, NonFiniteError
from claas_trainer.sdpo.fitting import until_it_fits
from claas_trainer.sdpo.optimizer import AdamWConfig, OptimizerState, Part, PlacedState, adamw_update, clip_gradient
from claas_trainer.sdpo.parameters import AdapterParameters
from claas_trainer.sdpo.policy import Network, PolicyModel
from claas_trainer.sdpo.scoring import Objective, Scored, Sums, score
from claas_trainer.sdpo.settings import Schedule, SdpoConfig
from claas_trainer.sdpo.teachers.base import Teacher
from claas_trainer.sdpo.teachers.frozen import FrozenTeacher
from claas_trainer.sdpo.transfers import ToDevice, ToHost


@dataclass(frozen=True)
class SdpoMetrics:
    """Metrics of a step; means are over all response tokens of the batch.

    `kl_to_parent`: KL(policy before || policy after) in nats per token, over the whole vocabulary, on some response
    tokens of every sample (`distance`); `kl_to_parent_max`: the largest mean of a sample. `kl_to_base` is None unless
    the KL term was on. `micro_batches`: their number; more than planned if memory ran out.
    """

    loss: float
    divergence: float
    grad_norm: float
    ratio_mean: float
    ratio_max: float
    clipped_fraction: float
    kl_to_parent: float
    kl_to_parent_max: float
    kl_to_base: float | None
    samples: int
    tokens: int
    micro_batches: int


@dataclass(frozen=True)
class SdpoResult:
    """The optimiser state after the step, which includes the updated master weights; the metrics; and the schedule,
    which is smaller than the given one if memory ran out."""

    state: OptimizerState
    metrics: SdpoMetrics
    schedule: Schedule


def sdpo_step(
    model: PolicyModel,
    samples: Sequence[TokenSample],
    config: SdpoConfig,
    state: OptimizerState,
    teacher: Teacher | None = None,
    schedule: Schedule | None = None,
    on_micro_batch: Callable[[int, int], None] | None = None,
) -> SdpoResult:
    """Takes one SDPO step from `state`, which is not changed.

    `teacher`: the frozen base model by default. `on_micro_batch` is called before each micro-batch, with its number
    from 1 and their count. If memory runs out, the step starts again with half of the schedule.

    Raises:
        InvalidBatchError: a sample can't be trained on; the message names its index and field.
        OptimizerStateError: the state belongs to another adapter.
        NonFiniteError: a loss or a gradient is NaN or infinite. PolicyMovedError: the step moved the policy further
        than `max_kl`. torch.OutOfMemoryError: even the smallest piece does not fit.
    """
    check_samples(samples, model.vocabulary_size)
    waiting = next((index for index, sample in enumerate(samples) if sample.waits_for_logprobs), None)
    if waiting is not None:
        raise InvalidBatchError(f"samples[{waiting}].old_logprobs must be computed first, under the sample's version")
    update = _Update(
        model,
        samples,
        config,
        state.arranged(model.layout),
        teacher or FrozenTeacher(),
        on_micro_batch or _tell_nobody,
    )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return update.take(schedule or Schedule())
    finally:
        model.clear()


def _tell_nobody(number: int, count: int) -> None:
    return


class _Update:
    """The inputs of one step, and its parts in the order of `take`."""

    def __init__(
        self,
        model: PolicyModel,
        samples: Sequence[TokenSample],
        config: SdpoConfig,
        state: OptimizerState,
        teacher: Teacher,
        on_micro_batch: Callable[[int, int], None],
    ) -> None:
        self._model = model
        self._samples = samples
        self._config = config
        self._state = state
        self._teacher = teacher
        self._on_micro_batch = on_micro_batch
        self._tokens = sum(len(sample.response_ids) for sample in samples)

    def take(self, schedule: Schedule) -> SdpoResult:
        model, config, state = self._model, self._config, self._state
        parameters = model.place(state.vectors[Part.MASTER])
        average = self._average(parameters)
        arriving = ToDevice({part: state.vectors[part] for part in (Part.EXP_AVG, Part.EXP_AVG_SQ)}, model.device)
        model.refresh(average)
        sums, distance, schedule = self._accumulate(parameters, schedule)
        # From sums over tokens to means over the batch's tokens, independent of the micro-batches.
        parameters.grad.div_(self._tokens)
        loss = sums.loss.item() / self._tokens
        if not math.isfinite(loss):
            raise NonFiniteError(
                f"the loss is {loss}: the adapter was not updated; if the base model's weights are finite, its"
                " activations overflow on these samples, as happens with float16 weights: use a bfloat16"
                " checkpoint"
            )
        grad_norm = clip_gradient(parameters, config.max_grad_norm).item()
        if not math.isfinite(grad_norm):
            raise NonFiniteError(
                f"the gradient's norm is {grad_norm}: the adapter was not updated; check the samples"
            )
        distance.ready()
        moments = arriving.ready()
        placed = PlacedState(moments[Part.EXP_AVG], moments[Part.EXP_AVG_SQ], average, state.step)
        after = ToHost(adamw_update(parameters, placed, _adamw(config), self._teacher.average_rate), model.device)
        model.refresh()
        moved, furthest = distance.moved()
        check_distance(moved, config.max_kl)
        metrics = SdpoMetrics(
            loss=loss,
            divergence=sums.divergence.item() / self._tokens,
            grad_norm=grad_norm,
            ratio_mean=sums.ratio.item() / self._tokens,
            ratio_max=sums.ratio_max.item(),
            clipped_fraction=sums.clipped.item() / self._tokens,
            kl_to_parent=moved,
            kl_to_parent_max=furthest,
            kl_to_base=sums.kl_to_base.item() / self._tokens if config.kl_reg_weight > 0 else None,
            samples=len(self._samples),
            tokens=self._tokens,
            micro_batches=len(list(micro_batches(self._samples, schedule.micro_batch_tokens))),
        )
        return SdpoResult(OptimizerState(model.layout, after.ready(), state.step + 1), metrics, schedule)

    def _average(self, parameters: AdapterParameters) -> Tensor | None:
        if self._teacher.average_rate is None:
            return None
        found = self._state.vectors.get(Part.AVERAGE)
        # The average starts as the adapter.
        return parameters.flat.clone() if found is None else found.to(parameters.flat.device, copy=True)

    def _accumulate(self, parameters: AdapterParameters, schedule: Schedule) -> tuple[Sums, Distance, Schedule]:
        (sums, distance), schedule = until_it_fits(self._pass_over_all, schedule, lambda: parameters.grad.zero_())
        return sums, distance, schedule

    def _pass_over_all(self, schedule: Schedule) -> tuple[Sums, Distance]:
        sums = Sums.zero(self._model.device)
        distance = Distance(self._model, self._samples, schedule.micro_batch_tokens, schedule.tile_rows)
        groups = list(micro_batches(self._samples, schedule.micro_batch_tokens))
        for number, group in enumerate(groups, start=1):
            self._on_micro_batch(number, len(groups))
            distance.tell(group, self._micro_batch(group, schedule, sums))
        return sums, distance

    def _micro_batch(self, group: Sequence[TokenSample], schedule: Schedule, sums: Sums) -> Tensor:
        """Adds a micro-batch's gradient and sums. Returns the student's features, [N, F]."""
        model, config = self._model, self._config
        responses = [sample.response_ids for sample in group]
        hinted = TokenBatch.of([sample.teacher_prompt_ids for sample in group], responses, model.device)
        batch = TokenBatch.of([sample.student_prompt_ids for sample in group], responses, model.device)
        # The teacher comes first: its forward pass saves nothing that would take memory from the student's.
        taught = [model.features(hinted, network) for network in self._teacher.networks]
        base = model.features(batch, Network.BASE) if config.kl_reg_weight > 0 else None
        student = model.student(batch)
        scored = Scored(student.features, taught, base, batch.targets, _old_logprobs(group, model.device))
        objective = Objective(
            config.alpha, config.is_clip, config.kl_reg_weight, config.support, config.teacher_top_k
        )
        student.backward(score(model, self._teacher, scored, objective, schedule.tile_rows, sums))
        return student.features


def _old_logprobs(group: Sequence[TokenSample], device: torch.device) -> Tensor:
    """The recorded log-probabilities, [N]; NaN where there are none."""
    values: list[float] = []
    for sample in group:
        values += sample.old_logprobs or [math.nan] * len(sample.response_ids)
    return torch.tensor(values, dtype=torch.float32).to(device)


def _adamw(config: SdpoConfig) -> AdamWConfig:
    return AdamWConfig(config.learning_rate, config.weight_decay, config.beta1, config.beta2, config.epsilon)
