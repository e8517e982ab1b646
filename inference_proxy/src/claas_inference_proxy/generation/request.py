"""Bodies of requests, with vLLM's names, bounds and defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from claas_inference_proxy.bodies import Body, read
from claas_inference_proxy.errors import bad_value

MOST_LOGPROBS = 20
"""The service's limit, and vLLM's default."""

MOST_ANSWERS = 128
"""To one prompt; OpenAI's limit. Each is sampled, paid for and kept in memory until all are there."""
MOST_PROMPTS = 1024
"""Of one request; vLLM's default."""

_NEUTRAL: Mapping[str, tuple[JsonValue, ...]] = {
    "allowed_token_ids": ([],),
    "audio": (),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template": (),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "kv_transfer_params": (),
    "logit_bias": ({},),
    "logprob_token_ids": ([],),
    "min_p": (0,),
    "min_tokens": (0,),
    "modalities": (["text"], []),
    "presence_penalty": (0,),
    "priority": (0,),
    "prompt_embeds": (),
    "repetition_detection": (),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "suffix": ("",),
    "thinking_token_budget": (-1,),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "vllm_xargs": ({},),
    "watermarking": (False,),
}
"""What the service can't do, with the values that ask for nothing; null is always one."""


class StreamOptions(Body):
    """What is streamed beside the answer."""

    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class Function(Body):
    """A function's description, as the chat template gets it."""

    name: str
    description: str | None = None
    parameters: dict[str, JsonValue] | None = None
    strict: bool | None = None


class Tool(Body):
    """A tool that the model may call."""

    type: Literal["function"] = "function"
    function: Function

    def for_template(self) -> dict[str, JsonValue]:
        """As vLLM gives it to the chat template."""
        function = self.function.model_dump()
        if function["strict"] is None:
            del function["strict"]
        return {"type": self.type, "function": function}


class Generation(Body):
    """What requests for answers have in common."""

    model: str | None = None
    n: int | None = 1
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    prompt_logprobs: int | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def wants_usage(self) -> bool:
        """Whether the last event of a stream tells the numbers of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def wants_usage_always(self) -> bool:
        """Whether each event does."""
        return self.wants_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)


class ChatFields(Body):
    """A conversation, and how it is rendered."""

    model: str | None = None
    messages: list[dict[str, JsonValue]]
    tools: list[Tool] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False
    chat_template_kwargs: dict[str, JsonValue] | None = None


class ChatBody(Generation, ChatFields):
    """The body of `/v1/chat/completions`."""

    tool_choice: JsonValue = None
    documents: list[dict[str, JsonValue]] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = 0
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    return_prompt_text: bool | None = None
    echo: bool = False


class CompletionBody(Generation):
    """The body of `/v1/completions`."""

    prompt: list[int] | list[list[int]] | str | list[str] | None = None
    echo: bool | None = False
    logprobs: int | None = None
    max_tokens: int | None = 16
    add_special_tokens: bool = True


class TokenizeBody(Body):
    """The body of `/tokenize` for a text."""

    model: str | None = None
    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool | None = False


class TokenizeChatBody(ChatFields):
    """The body of `/tokenize` for a conversation."""

    return_token_strs: bool | None = False


class DetokenizeBody(Body):
    """The body of `/detokenize`."""

    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0)]]


class ScoreQuestion(Body):
    """The body of `/v1/score`: a conversation, and a completion whose log-probabilities are asked for."""

    model: str | None = None
    messages: Annotated[list[dict[str, JsonValue]], Field(min_length=1)]
    completion: Annotated[str, Field(min_length=1)]


def read_chat(document: Mapping[str, JsonValue]) -> ChatBody:
    """A request for the next message. Raises RefusalError for what can't be honoured."""
    refuse_unsupported(document)
    asked = read(ChatBody, document)
    if asked.echo:
        raise bad_value("echo is not supported for chat", "echo")
    if asked.add_generation_prompt and asked.continue_final_message:
        raise bad_value(
            "Cannot set both `continue_final_message` and `add_generation_prompt` to True.", "continue_final_message"
        )
    if asked.top_logprobs and not asked.logprobs:
        raise bad_value("when using `top_logprobs`, `logprobs` must be set to true.", "top_logprobs")
    if asked.tools and asked.tool_choice != "none":
        raise bad_value(
            "the inference proxy does not take tool calls out of an answer: set tool_choice to none, which gives the"
            " tools to the chat template and leaves the calls in the text",
            "tool_choice",
        )
    if not asked.tools and asked.tool_choice not in (None, "none", "auto"):
        raise bad_value("tool_choice needs tools", "tool_choice")
    _check(asked)
    return asked


def read_completion(document: Mapping[str, JsonValue]) -> CompletionBody:
    """A request for the continuation of texts. Raises RefusalError for what can't be honoured."""
    refuse_unsupported(document)
    asked = read(CompletionBody, document)
    if asked.prompt is None or asked.prompt == "":
        raise bad_value("prompt must be given and not be empty", "prompt")
    if not isinstance(asked.prompt, str) and sum(not isinstance(each, int) for each in asked.prompt) > MOST_PROMPTS:
        raise bad_value(f"a request can have {MOST_PROMPTS} prompts at most", "prompt")
    _check(asked)
    return asked


def refuse_unsupported(document: Mapping[str, JsonValue]) -> None:
    """Raises RefusalError for a setting that would change the answer and can't be honoured."""
    for name, neutral in _NEUTRAL.items():
        value = document.get(name)
        if value is not None and value not in neutral:
            raise bad_value(
                f"{name} is not supported: the Tinker service samples by temperature, top_p, top_k, seed and stop"
                " alone. Leave it out",
                name,
            )


def _check(asked: Generation) -> None:
    if asked.stream_options is not None and not asked.stream:
        raise bad_value("Stream options can only be defined when `stream=True`.", "stream_options")
    if "" in asked.stops:
        raise bad_value("stop cannot contain an empty string.", "stop")
    if asked.n is not None and asked.n < 1:
        raise bad_value(f"n must be at least 1, got {asked.n}.", "n")
    if asked.n is not None and asked.n > MOST_ANSWERS:
        raise bad_value(f"n must be at most {MOST_ANSWERS}, got {asked.n}.", "n")
    if asked.temperature is not None and not 0 <= asked.temperature < math.inf:
        raise bad_value(f"temperature must be non-negative and finite, got {asked.temperature}.", "temperature")
    if asked.top_p is not None and not 0 < asked.top_p <= 1:
        raise bad_value(f"top_p must be in (0, 1], got {asked.top_p}.", "top_p")
    if asked.top_k is not None and asked.top_k < -1:
        raise bad_value(f"top_k must be 0 (disable), or at least 1, got {asked.top_k}.", "top_k")
    if asked.prompt_logprobs is not None and asked.stream:
        raise bad_value("prompt_logprobs are not streamed: ask without stream", "prompt_logprobs")
    check_logprobs(asked.prompt_logprobs, "prompt_logprobs")


def check_logprobs(number: int | None, name: str) -> None:
    """Raises RefusalError for a number of log-probabilities that the service does not tell."""
    if number is not None and not 0 <= number <= MOST_LOGPROBS:
        raise bad_value(f"{name} must be between 0 and {MOST_LOGPROBS}, got {number}.", name)
