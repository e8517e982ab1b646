"""What the loss compares the student with, asked of the service's samplers: the support, the teacher's
log-probabilities there, and those of the response tokens under other policies.

A sampler is asked for a prompt and its response as one prompt, of which it scores the last tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import tinker
import torch
from tinker import types
from torch import Tensor

from claas_bounded.waits import Deadline
from claas_contract.engine import TokenisedSample
from claas_contract.outcome import FailureReason
from claas_tinker_client.connection import TinkerConnection
from claas_tinker_client.errors import ServiceFault, TinkerServiceError
from claas_trainer.engines.tinker.objective import ScoredSample
from claas_trainer.engines.tinker.remote_run import RunStart
from claas_trainer.errors import EngineError, InputError
from claas_trainer.logs import log
from claas_trainer.sdpo.settings import SdpoConfig

T = TypeVar("T")

_AT_ONCE = 32
"""Number of requests at a time; the SDK itself slows down when the service asks for it."""


@dataclass(frozen=True)
class Samplers:
    """The policies that are asked."""

    base: tinker.SamplingClient
    """The base model: the teacher, and what the KL term keeps the student near."""
    parent: tinker.SamplingClient
    """The student before the step."""
    earlier: Mapping[int, tinker.SamplingClient]
    """Versions that answered, by number."""


class Scorer:
    """Scores a batch. All methods raise TinkerServiceError and TrainerError."""

    def __init__(
        self,
        connection: TinkerConnection,
        samplers: Samplers,
        start: RunStart,
        config: SdpoConfig,
        deadline: Deadline,
        tell_progress: Callable[[str], None],
    ) -> None:
        self._connection = connection
        self._samplers = samplers
        self._start = start
        self._config = config
        self._deadline = deadline
        self._tell_progress = tell_progress
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._done = 0

    async def score(self, samples: Sequence[TokenisedSample]) -> list[ScoredSample]:
        """The samples, in their order, with all that the loss needs."""
        found = await _all(self._sample(sample, len(samples)) for sample in samples)
        refused = [index for index, scored in enumerate(found) if scored.teacher is None]
        if refused:
            log("teacher-by-trainer", samples=len(refused))
            taught = await self._taught_by_trainer([(samples[i], found[i].support) for i in refused])
            for index, teacher in zip(refused, taught, strict=True):
                found[index].teacher = teacher
        return [scored.complete() for scored in found]

    async def _sample(self, sample: TokenisedSample, count: int) -> _Scoring:
        support = await self._support(sample)
        scoring = _Scoring(sample, support)
        scoring.teacher, scoring.old, scoring.base = await asyncio.gather(
            self._teacher(sample, support), self._old(sample), self._base(sample)
        )
        self._done += 1
        self._tell_progress(f"support and teacher of {self._done} of {count} samples")
        return scoring

    async def _support(self, sample: TokenisedSample) -> Tensor:
        """The student's most likely tokens at each response token, [R, K]."""
        k, length = self._config.teacher_top_k, len(sample.response_ids)
        try:
            answer = await self._ask(
                "for the student's most likely tokens",
                self._samplers.parent,
                sample.student_prompt_ids + sample.response_ids,
                length,
                topk=k,
            )
        except TinkerServiceError as error:
            if error.fault is not ServiceFault.REQUEST_REFUSED:
                raise
            raise InputError(f"engine tinker: training.teacher_top_k is {k}, and {error.message}") from None
        rows = (answer.topk_prompt_logprobs or [])[-length:]
        fewest = min((len(row or ()) for row in rows), default=0)
        if len(rows) != length or fewest < k:
            raise InputError(
                f"engine tinker: training.teacher_top_k is {k}, and the Tinker service told only {fewest} tokens; use"
                " fewer"
            )
        return torch.tensor([[token for token, _ in row or ()] for row in rows])

    async def _teacher(self, sample: TokenisedSample, support: Tensor) -> Tensor | None:
        """The teacher's log-probabilities at the support, [R, K]; None if the service does not tell so many."""
        tokens, length = sample.teacher_prompt_ids + sample.response_ids, len(sample.response_ids)
        wanted = support.new_full((len(tokens) - 1, support.shape[-1]), -1)
        wanted[-length:] = support
        try:
            answer = await self._ask(
                "for the teacher's log-probabilities", self._samplers.base, tokens, length, wanted
            )
        except TinkerServiceError as error:
            if error.fault is not ServiceFault.REQUEST_REFUSED:
                raise
            return None
        if answer.target_prompt_logprobs is None:
            return None
        return answer.target_prompt_logprobs.to_torch()[-length:]

    async def _taught_by_trainer(self, wanted: Sequence[tuple[TokenisedSample, Tensor]]) -> list[Tensor]:
        """The same by a new LoRA, which is the base model until it is trained."""
        start = self._start
        run = await self._connection.new_run(start.base_model, start.rank, start.seed, self._deadline)
        data = [_teacher_datum(sample, support) for sample, support in wanted]
        output: types.ForwardBackwardOutput = await self._connection.call(
            "for the teacher's log-probabilities", lambda: run.forward(data, "cross_entropy"), self._deadline
        )
        return [
            told["logprobs"].to_torch().reshape(-1, support.shape[-1])[-len(sample.response_ids) :]
            for told, (sample, support) in zip(output.loss_fn_outputs, wanted, strict=True)
        ]

    async def _old(self, sample: TokenisedSample) -> Tensor | None:
        """Log-probabilities of the response when it was sampled; None: as the student's before the step."""
        if sample.old_logprobs:
            return torch.tensor(sample.old_logprobs)
        earlier = None if sample.version is None else self._samplers.earlier.get(sample.version)
        return None if earlier is None else await self._of_response(earlier, sample)

    async def _base(self, sample: TokenisedSample) -> Tensor | None:
        return await self._of_response(self._samplers.base, sample) if self._config.kl_reg_weight > 0 else None

    async def _of_response(self, sampler: tinker.SamplingClient, sample: TokenisedSample) -> Tensor:
        """Log-probabilities of the response tokens after the student's prompt, [R]."""
        length = len(sample.response_ids)
        tokens = sample.student_prompt_ids + sample.response_ids
        answer = await self._ask("for log-probabilities of responses", sampler, tokens, length)
        values = (answer.prompt_logprobs or [])[-length:]
        if len(values) != length or any(value is None for value in values):
            raise EngineError(
                FailureReason.SERVICE_UNREACHABLE,
                "engine tinker: the Tinker service did not tell the log-probability of each response token",
            )
        # Rounding may put a value slightly above 0.
        return torch.tensor([value or 0.0 for value in values]).clamp(max=0.0)

    async def _ask(
        self,
        asked: str,
        sampler: tinker.SamplingClient,
        tokens: tuple[int, ...],
        last: int,
        targets: Tensor | None = None,
        topk: int = 0,
    ) -> types.SampleResponse:
        """One prefill; the token that it generates is not used."""
        wanted = None if targets is None else types.TensorData.from_torch_sparse(targets, pad_value=-1)
        async with self._slots:
            return await self._connection.call(
                asked,
                lambda: sampler.sample(
                    types.ModelInput.from_ints(list(tokens)),
                    1,
                    types.SamplingParams(max_tokens=1, temperature=1.0),
                    include_prompt_logprobs=True,
                    topk_prompt_logprobs=topk,
                    target_prompt_logprobs=wanted,
                    prompt_logprobs_last_n=last,
                ),
                self._deadline,
            )


@dataclass
class _Scoring:
    """A sample as far as it is scored."""

    sample: TokenisedSample
    support: Tensor
    teacher: Tensor | None = None
    old: Tensor | None = None
    base: Tensor | None = None

    def complete(self) -> ScoredSample:
        assert self.teacher is not None
        sample = self.sample
        return ScoredSample(
            sample.student_prompt_ids, sample.response_ids, self.support, self.teacher, self.old, self.base
        )


def _teacher_datum(sample: TokenisedSample, support: Tensor) -> types.Datum:
    inputs = (*sample.teacher_prompt_ids, *sample.response_ids[:-1])
    targets = torch.cat([support.new_zeros(len(sample.teacher_prompt_ids) - 1, support.shape[-1]), support])
    return types.Datum(
        model_input=types.ModelInput.from_ints(list(inputs)),
        loss_fn_inputs={
            "target_tokens": types.TensorData.from_torch(targets),
            "weights": types.TensorData.from_torch(torch.zeros(targets.shape)),
        },
    )


async def _all(work: Iterable[Coroutine[None, None, T]]) -> list[T]:
    """All results; after a failure the others are not waited for."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
