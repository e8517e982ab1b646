"""Records the prompt and the sampled tokens of the request that is being answered.

Every answer of the server comes from `generate` of vLLM's engine client. What is recorded there are the token ids as
they were sampled, whatever chat templates, parsers and stop strings make of them.
"""

import copy
import functools
import json
from collections.abc import AsyncGenerator
from contextvars import ContextVar
from typing import Any

from claas_vllm.log import logger

_SETTINGS = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed",
)  # fmt: skip
_LOWEST_LOGPROB = -9999.0
"""What vLLM's own answers say for minus infinity, which JSON lacks."""
_CUT_SHORT = ("abort", "error")


class AnswerRecorder:
    """The record of one request. While it is entered, calls of `generate` are recorded in it."""

    def __init__(self, *, logprobs: bool) -> None:
        self.logprobs = logprobs
        self._calls: list[RecordedCall] = []

    def __enter__(self) -> "AnswerRecorder":
        self._token = _current.set(self)
        return self

    def __exit__(self, *raised: object) -> None:
        _current.reset(self._token)
        # A task that vLLM starts meanwhile keeps a copy of the context for as long as it runs.
        self._calls = []

    def line(self) -> bytes:
        """What was recorded so far, as one line of JSON: a call for each prompt, with an output for each answer."""
        version = next((call.version for call in self._calls), None)
        record = {"v": 1, "version": version, "calls": [call.document() for call in self._calls]}
        return json.dumps(record, separators=(",", ":")).encode()

    def call(self, version: str | None, sampling: dict[str, Any]) -> "RecordedCall":
        """A prompt that is answered by an adapter, or by the base model (None), with these settings."""
        self._calls.append(RecordedCall(version, sampling, logprobs=self.logprobs))
        return self._calls[-1]


_current: ContextVar[AnswerRecorder | None] = ContextVar("claas_recorder", default=None)


def current_recorder() -> AnswerRecorder | None:
    """The recorder of the request that is being answered; None if its caller wants no record."""
    return _current.get()


def record_generate(application: object) -> bool:
    """Let recorders see what the application's engine is asked and answers. False if there is no such engine."""
    engine: Any = getattr(getattr(application, "state", None), "engine_client", None)
    generate = getattr(engine, "generate", None)
    if generate is None:
        logger.warning("This vLLM has no engine client whose answers can be recorded")
        return False
    config = getattr(getattr(engine, "vllm_config", None), "model_config", None)
    mode = getattr(config, "logprobs_mode", None)
    logprobs_mode = mode if isinstance(mode, str) else None

    @functools.wraps(generate)
    def recorded(prompt: Any, sampling_params: Any, *others: Any, **named: Any) -> Any:
        recorder = current_recorder()
        # Beam search asks for single tokens, without text; they are not the answer.
        if recorder is None or not sampling_params.detokenize:
            return generate(prompt, sampling_params, *others, **named)
        sampling = {name: getattr(sampling_params, name, None) for name in _SETTINGS}
        version = getattr(named.get("lora_request"), "lora_name", None)
        call = recorder.call(version, {**sampling, "logprobs_mode": logprobs_mode})
        is_text = isinstance(prompt, dict) and prompt.get("type") == "token"
        adds = sampling_params.output_kind.name == "DELTA"
        # What vLLM itself asks for; older releases have the setting alone.
        asked = getattr(sampling_params, "num_logprobs", sampling_params.logprobs)
        hides = recorder.logprobs and asked is None
        if hides:
            sampling_params = copy.copy(sampling_params)
            sampling_params.logprobs = 0
        answers = generate(prompt, sampling_params, *others, **named)
        return _followed(call, answers, is_text=is_text, adds=adds, hides=hides)

    # All of vLLM's handlers hold this object, so they find the attribute before the class's method.
    engine.generate = recorded
    return True


class RecordedCall:
    """One prompt, the settings it is answered with, and the answers. `prompt_ids` stays empty if the prompt is not of
    text alone: token ids do not tell such a prompt. `finished`: each answer came to its own end, and all is here."""

    def __init__(self, version: str | None, sampling: dict[str, Any], *, logprobs: bool) -> None:
        self.version = version
        self.wants_logprobs = logprobs
        self.prompt_ids: list[int] = []
        self.finished = self.broken = False
        self._sampling = sampling
        self._outputs: dict[int, RecordedOutput] = {}

    def output(self, index: int, *, anew: bool = False) -> "RecordedOutput":
        """An answer by its index; `anew`: without what was recorded of it."""
        if anew or index not in self._outputs:
            self._outputs[index] = RecordedOutput()
        return self._outputs[index]

    def document(self) -> dict[str, object]:
        """For JSON."""
        outputs = [output.document(index) for index, output in sorted(self._outputs.items())]
        cut_short = any(output["finish_reason"] in _CUT_SHORT for output in outputs)
        return {
            "prompt_token_ids": self.prompt_ids,
            "sampling": self._sampling,
            "finished": self.finished and not self.broken and not cut_short,
            "outputs": outputs,
        }


class RecordedOutput:
    """One answer to a prompt."""

    __slots__ = ("finish_reason", "logprobs", "stop_reason", "token_ids")

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.finish_reason: str | None = None
        self.stop_reason: str | int | None = None

    def document(self, index: int) -> dict[str, object]:
        """For JSON."""
        return {
            "index": index,
            "token_ids": self.token_ids,
            "logprobs": self.logprobs if len(self.logprobs) == len(self.token_ids) else None,
            "finish_reason": self.finish_reason,
            "stop_reason": self.stop_reason,
        }


async def _followed(
    call: RecordedCall, answers: AsyncGenerator[Any, None], *, is_text: bool, adds: bool, hides: bool
) -> AsyncGenerator[Any, None]:
    """vLLM's answers as they come. `adds`: each one has only what is new. `hides`: vLLM itself asked for no
    log-probabilities, and gets none."""
    try:
        async for answer in answers:
            try:
                _take(call, answer, is_text, adds, hides)
            except Exception as error:  # noqa: BLE001  An unknown vLLM; its answer goes out all the same.
                if not call.broken:
                    logger.warning("An answer can't be recorded: %s", type(error).__name__)
                call.broken = True
            yield answer
    finally:
        await answers.aclose()


def _take(call: RecordedCall, answer: Any, is_text: bool, adds: bool, hides: bool) -> None:
    for part in answer.outputs:
        output = call.output(part.index, anew=not adds)
        output.token_ids += part.token_ids
        if call.wants_logprobs:
            output.logprobs += _sampled_logprobs(part)
            if hides:
                part.logprobs = part.cumulative_logprob = None
        if part.finish_reason is not None:
            output.finish_reason, output.stop_reason = part.finish_reason, part.stop_reason
    if answer.finished:
        call.finished = True
    if is_text:
        call.prompt_ids = answer.prompt_token_ids


def _sampled_logprobs(part: Any) -> list[float]:
    """The log-probability of each sampled token; the engine puts others, if asked for, beside it."""
    found = [position[token].logprob for token, position in zip(part.token_ids, part.logprobs or (), strict=False)]
    return [logprob if logprob > _LOWEST_LOGPROB else _LOWEST_LOGPROB for logprob in found]
