"""From a checked request to what the service answers."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus

from pydantic import JsonValue

from claas_bounded.waits import Deadline
from claas_inference_proxy.adapters.loaded import Model, Models
from claas_inference_proxy.errors import RefusalError, bad_value
from claas_inference_proxy.generation.answer import cut
from claas_inference_proxy.generation.documents import Document, Heading, Prompted, Shown
from claas_inference_proxy.generation.logprobs import Spelling
from claas_inference_proxy.generation.plan import Limits, Plan, answer_limit, plan
from claas_inference_proxy.generation.request import (
    ChatBody,
    ChatFields,
    CompletionBody,
    Generation,
    ScoreQuestion,
)
from claas_inference_proxy.metrics import ProxyMetrics
from claas_inference_proxy.prompts.conversation import normalised
from claas_inference_proxy.prompts.tokenizer import Tokenizer
from claas_inference_proxy.upstream.sampling import Ask, Samples
from claas_inference_proxy.upstream.service import Service
from claas_vllm.recording import RecordedCall, current_recorder

_UNTOLD_CONTEXT_LENGTH = 32768
"""Where neither service nor model tell it."""
_PREFLIGHT_SECONDS = 30.0


@dataclass(frozen=True)
class Answered:
    """The answers to all prompts of a request."""

    heading: Heading
    prompts: tuple[Prompted, ...]
    shown: Shown


class Answering:
    """Answers requests. All methods raise RefusalError and TinkerServiceError."""

    def __init__(
        self, service: Service, models: Models, tokenizer: Tokenizer, metrics: ProxyMetrics, timeout_seconds: float
    ) -> None:
        self.tokenizer = tokenizer
        self._service = service
        self._models = models
        self._metrics = metrics
        self._timeout_seconds = timeout_seconds
        self._limits: Limits | None = None

    @property
    def context_length(self) -> int | None:
        """Longest prompt with its answer, in tokens, as far as it is known."""
        return self.tokenizer.context_length if self._limits is None else self._limits.context_length

    async def limits(self) -> Limits:
        """Of the base model, as the service tells them once."""
        if self._limits is None:
            told = await self._service.context_length(Deadline.after(_PREFLIGHT_SECONDS))
            length = told or self.tokenizer.context_length or _UNTOLD_CONTEXT_LENGTH
            self._limits = Limits(length, self.tokenizer.vocabulary)
        return self._limits

    async def chat(self, asked: ChatBody) -> Answered:
        """The next message of a conversation."""
        model, limits = self._models.get(asked.model), await self.limits()
        text = self.rendered(
            asked,
            documents=asked.documents,
            reasoning_effort=asked.reasoning_effort,
        )
        most, name = asked.max_tokens, "max_tokens"
        if asked.max_completion_tokens is not None:
            most, name = asked.max_completion_tokens, "max_completion_tokens"
        logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
        prompt = self.tokenizer.encode(text, special=asked.add_special_tokens)
        planned = plan(
            asked, prompt, self.tokenizer, limits, max_tokens=most, logprobs=logprobs, max_tokens_name=name
        )
        found = await self._answered(model, asked, planned, None)
        shown = self._shown(
            asked,
            logprobs,
            role="assistant" if asked.add_generation_prompt else str(asked.messages[-1].get("role")),
            prompt_text=text if asked.return_prompt_text else None,
        )
        return Answered(self._heading("chatcmpl", model), (found,), shown)

    async def complete(self, asked: CompletionBody) -> Answered:
        """Continuations of one or several prompts."""
        model, limits = self._models.get(asked.model), await self.limits()
        prompts = self._prompts(asked)
        if asked.echo:
            # What is echoed is told of as what is sampled.
            asked = asked.model_copy(update={"prompt_logprobs": _most(asked.prompt_logprobs, asked.logprobs)})
        only_echo = bool(asked.echo) and asked.max_tokens == 0
        plans = [
            plan(
                asked,
                prompt,
                self.tokenizer,
                limits,
                max_tokens=1 if only_echo else asked.max_tokens,
                logprobs=asked.logprobs,
            )
            for prompt in prompts
        ]
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._answered(model, asked, planned, asked.echo, drop=only_echo))
                for planned in plans
            ]
        return Answered(
            self._heading("cmpl", model), tuple(task.result() for task in tasks), self._shown(asked, asked.logprobs)
        )

    async def score(self, asked: ScoreQuestion) -> Document:
        """Log-probabilities of a given completion."""
        model, limits = self._models.get(asked.model), await self.limits()
        messages = normalised(asked.messages, as_parts=self.tokenizer.takes_parts)
        prompt = self.tokenizer.encode(self.tokenizer.render(messages), special=False)
        completion = self.tokenizer.encode(asked.completion, special=False)
        together = (*prompt, *completion)
        answer_limit(len(together), 1, limits.context_length)
        ask = Ask(together, max_tokens=1, temperature=0.0, prompt_likeliest=0, scored=len(completion))
        found = (await self._sampled(model, ask)).prompt or ()
        told = [each.logprob for each in found[len(prompt) :] if each is not None]
        if len(told) != len(completion):
            raise _incomplete("the log-probability of each token")
        return {
            "logprobs": list[JsonValue](told),
            "tokens": [
                self.tokenizer.token_text(token, together[: len(prompt) + index])
                for index, token in enumerate(completion)
            ],
            "prompt_tokens": len(prompt),
            "completion_tokens": len(completion),
            "logprob_sum": sum(told),
        }

    def rendered(
        self,
        asked: ChatFields,
        *,
        documents: Sequence[dict[str, JsonValue]] | None = None,
        reasoning_effort: str | None = None,
    ) -> str:
        """The prompt of a conversation, as vLLM renders it."""
        if not asked.messages:
            raise bad_value(
                "Cannot apply chat template to an empty conversation. Provide at least one message.", "messages"
            )
        arguments = dict(asked.chat_template_kwargs or {})
        if reasoning_effort is not None:
            arguments = {
                "enable_thinking": reasoning_effort != "none", **arguments, "reasoning_effort": reasoning_effort
            }  # fmt: skip
        return self.tokenizer.render(
            normalised(asked.messages, as_parts=self.tokenizer.takes_parts),
            tools=[tool.for_template() for tool in asked.tools] if asked.tools else None,
            documents=documents,
            answer_next=asked.add_generation_prompt,
            go_on=asked.continue_final_message,
            arguments=arguments,
        )

    async def _answered(
        self, model: Model, asked: Generation, planned: Plan, echo: bool | None, *, drop: bool = False
    ) -> Prompted:
        ask = planned.ask
        record = _record(model, ask)
        found = await self._sampled(model, ask)
        wants_logprobs = ask.likeliest or _wants_logprobs(asked) or (record is not None and record.wants_logprobs)
        if wants_logprobs and any(len(each.logprobs) != len(each.tokens) for each in found.sequences):
            raise _incomplete("the log-probability of each token")
        answers = tuple(
            cut(
                each,
                self.tokenizer.pieces(ask.prompt, each.tokens, skip_special=asked.skip_special_tokens),
                planned.ends,
                keep_stop=asked.include_stop_str_in_output,
            )
            for each in found.sequences
        )
        for index, answer in enumerate(answers):
            self._metrics.answered(
                prompt_tokens=0 if index else len(ask.prompt),
                generation_tokens=len(answer.tokens),
                finish=answer.finish.value,
            )
            if record is not None:
                output = record.output(index)
                output.token_ids = answer.ids
                output.logprobs = [token.logprob for token in answer.tokens if token.logprob is not None]
                output.finish_reason, output.stop_reason = answer.finish.value, answer.stop
        if record is not None:
            record.prompt_ids, record.finished = list(ask.prompt), True
        if drop:
            answers = tuple(type(answer)((), answer.finish, None) for answer in answers)
        told = found.prompt
        if ask.prompt_likeliest is not None and told is None:
            raise _incomplete("the log-probabilities of the prompt")
        text = self.tokenizer.decode(ask.prompt, skip_special=asked.skip_special_tokens) if echo else None
        return Prompted(ask.prompt, answers, told, text)

    async def _sampled(self, model: Model, ask: Ask) -> Samples:
        with self._metrics.running():
            return await self._service.sample(model.checkpoint, ask, Deadline.after(self._timeout_seconds))

    def _prompts(self, asked: CompletionBody) -> list[list[int]]:
        given = asked.prompt
        if isinstance(given, str):
            return [self.tokenizer.encode(given, special=asked.add_special_tokens)]
        found: list[list[int]] = []
        numbers: list[int] = []
        for each in given or ():
            if isinstance(each, str):
                found.append(self.tokenizer.encode(each, special=asked.add_special_tokens))
            elif isinstance(each, list):
                found.append(each)
            else:
                numbers.append(each)
        prompts = [numbers] if numbers else found
        if not prompts or not all(prompts):
            raise bad_value("You must pass at least one prompt, and none may be empty", "prompt")
        return prompts

    def _shown(
        self, asked: Generation, logprobs: int | None, *, role: str = "assistant", prompt_text: str | None = None
    ) -> Shown:
        spelling = Spelling(self.tokenizer, bool(asked.return_tokens_as_token_ids))
        return Shown(spelling, logprobs, bool(asked.return_token_ids), role, prompt_text)

    def _heading(self, kind: str, model: Model) -> Heading:
        return Heading(f"{kind}-{secrets.token_hex(8)}", int(time.time()), model.name)


def _wants_logprobs(asked: Generation) -> bool:
    match asked:
        case ChatBody():
            return bool(asked.logprobs)
        case CompletionBody():
            return asked.logprobs is not None
    return False


def _record(model: Model, ask: Ask) -> RecordedCall | None:
    """What the companion records of this prompt, if the caller wants a record."""
    recorder = current_recorder()
    if recorder is None:
        return None
    sampling = {
        "temperature": ask.temperature, "top_p": ask.top_p, "top_k": max(ask.top_k, 0), "min_p": 0.0,
        "presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0, "seed": ask.seed,
        "logprobs_mode": None,
    }  # fmt: skip
    return recorder.call(model.name if model.is_adapter else None, sampling)


def _most(one: int | None, other: int | None) -> int | None:
    known = [each for each in (one, other) if each is not None]
    return max(known) if known else None


def _incomplete(what: str) -> RefusalError:
    return RefusalError(
        f"the Tinker service did not tell {what}", status=HTTPStatus.BAD_GATEWAY, kind="UpstreamError"
    )
