"""What the service is asked and answers, as values."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tinker.types import ModelInput, SampledSequence, SampleResponse, SamplingParams

Likeliest = tuple[tuple[int, float], ...]
"""Token ids with their log-probabilities, the likeliest first."""

LOWEST_LOGPROB = -9999.0
"""What vLLM says for minus infinity, which JSON lacks."""


@dataclass(frozen=True)
class Ask:
    """One prompt, and how it is answered."""

    prompt: tuple[int, ...]
    max_tokens: int
    number: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    seed: int | None = None
    stop: tuple[str, ...] | tuple[int, ...] = ()
    """Strings or token ids that end an answer; empty: nothing does."""
    likeliest: int = 0
    """Number of likeliest tokens told at each position of an answer."""
    prompt_likeliest: int | None = None
    """The same for the prompt, whose own tokens are then told too; None: nothing is told of the prompt."""
    scored: int | None = None
    """Number of the prompt's last tokens that are told of; None: all."""

    def params(self) -> SamplingParams:
        """For the SDK."""
        return SamplingParams(
            max_tokens=self.max_tokens, seed=self.seed, stop=list(self.stop), temperature=self.temperature,
            top_k=self.top_k, top_p=self.top_p,
        )  # fmt: skip

    def model_input(self) -> ModelInput:
        """For the SDK."""
        return ModelInput.from_ints(list(self.prompt))


@dataclass(frozen=True)
class Sequence:
    """One answer as it was sampled."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Of each token; empty if the service told none."""
    likeliest: tuple[Likeliest, ...]
    """At each position; empty if not asked for."""
    stopped: bool
    """Whether something ended it, rather than its length."""


@dataclass(frozen=True)
class PromptToken:
    """What the model says of a token of the prompt."""

    logprob: float
    likeliest: Likeliest


@dataclass(frozen=True)
class Samples:
    """The answers to one prompt."""

    sequences: tuple[Sequence, ...]
    prompt: tuple[PromptToken | None, ...] | None
    """None for tokens that nothing is told of, as the first; None as a whole if not asked for."""


def sampled(response: SampleResponse, ask: Ask) -> Samples:
    """The SDK's answer as values."""
    return Samples(tuple(_sequence(each) for each in response.sequences), _prompt(response, ask))


def _sequence(found: SampledSequence) -> Sequence:
    return Sequence(
        tokens=tuple(found.tokens),
        logprobs=tuple(_finite(each) for each in found.logprobs or ()),
        likeliest=tuple(_likeliest(each) for each in found.topk_logprobs or ()),
        stopped=found.stop_reason == "stop",
    )


def _prompt(response: SampleResponse, ask: Ask) -> tuple[PromptToken | None, ...] | None:
    logprobs = response.prompt_logprobs
    if ask.prompt_likeliest is None or logprobs is None:
        return None
    topk = response.topk_prompt_logprobs or [None] * len(logprobs)
    return tuple(
        None if value is None else PromptToken(_finite(value), _likeliest(best))
        for value, best in zip(logprobs, topk, strict=True)
    )


def _likeliest(found: list[tuple[int, float]] | None) -> Likeliest:
    return tuple((int(token), _finite(value)) for token, value in found or ())


def _finite(value: float) -> float:
    """NaN stays, so that a probe sees it."""
    return value if math.isnan(value) else max(value, LOWEST_LOGPROB)
