"""The bodies of the inference routes, as the OpenAPI document describes them. The hot path does not read them: fields
that are not named here are passed on to vLLM as they are."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue


class _Described(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True, extra="allow")


class ChatMessage(_Described):
    """A message."""

    role: str = Field(examples=["user"])
    content: str | list[dict[str, JsonValue]] | None = Field(default=None, examples=["What is a tide?"])
    """Text, or parts of it."""


class _Sampling(_Described):
    model: str | None = Field(default=None, examples=["acme/tone"])
    """An adapter's served name, name, identifier, `ID-init`, `ID-latest` or dashed identifier, or a base model. It
    may be left out where one base model is served."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Longest answer, in tokens."""
    temperature: float | None = Field(default=None, ge=0)
    """0 takes the likeliest token each time."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Share of the probability that is sampled from."""
    n: int | None = Field(default=None, ge=1)
    """Number of answers; each is a rollout."""
    stop: str | list[str] | None = None
    """Texts that end the answer."""
    seed: int | None = None
    stream: bool = False
    """Answer by server-sent events, as the tokens come."""
    user: str | None = None
    """The end user; `DELETE /v1/users/{user}/data` deletes what is stored of them."""


class ChatRequest(_Sampling):
    """As OpenAI's chat completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: list[dict[str, JsonValue]] | None = None


class CompletionRequest(_Sampling):
    """As OpenAI's completions."""

    prompt: str | list[str] | list[int] | list[list[int]] = Field(examples=["Once upon a time"])


class ScoreRequest(_Described):
    """A completion whose probability is asked for."""

    model: str | None = Field(default=None, examples=["acme/tone"])
    messages: list[ChatMessage] = Field(min_length=1)
    """The conversation before it; the server applies the chat template."""
    completion: str = Field(examples=["Paris."])


class ChatAnswer(_Described):
    """As OpenAI's chat completion. The header `X-Claas-Rollout` names the rollout of the first choice."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[dict[str, JsonValue]]
    usage: dict[str, JsonValue] | None = None


class CompletionAnswer(_Described):
    """As OpenAI's completion. The header `X-Claas-Rollout` names the rollout of the first choice."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[dict[str, JsonValue]]
    usage: dict[str, JsonValue] | None = None


class ModelCard(_Described):
    """A model that can be asked."""

    id: str
    object: Literal["model"]


class ListedModels(_Described):
    """The models that the key sees."""

    object: Literal["list"]
    data: list[ModelCard]


class ScoreAnswer(_Described):
    """Log-probabilities of a completion's tokens."""

    logprobs: list[float]
    tokens: list[str]
    prompt_tokens: int
    completion_tokens: int
    logprob_sum: float


class ErrorDescription(BaseModel):
    """OpenAI's description of an error."""

    message: str
    type: str
    param: str | None
    code: str | int | None


class InferenceError(BaseModel):
    """An error of an inference route: OpenAI's shape, and CLaaS's beside it."""

    error: ErrorDescription
    detail: JsonValue = None


class GatewayRefusal(BaseModel):
    """An error of any other route."""

    detail: str
