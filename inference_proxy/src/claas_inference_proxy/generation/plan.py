"""What the service is asked for a prompt: limits, settings and defaults, as vLLM applies them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from claas_inference_proxy.errors import bad_value
from claas_inference_proxy.generation.request import Generation, check_logprobs
from claas_inference_proxy.prompts.tokenizer import Tokenizer
from claas_inference_proxy.upstream.sampling import Ask


@dataclass(frozen=True)
class Ends:
    """What ends an answer."""

    end_id: int | None
    """The token after which no reason is told."""
    ids: frozenset[int]
    strings: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A prompt, what the service is asked, and where the answer ends."""

    ask: Ask
    ends: Ends


@dataclass(frozen=True)
class Limits:
    """Lengths and token ids that a model takes."""

    context_length: int
    vocabulary: int


def plan(
    asked: Generation,
    prompt: Sequence[int],
    tokenizer: Tokenizer,
    limits: Limits,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    max_tokens_name: str = "max_tokens",
) -> Plan:
    """The question to the service. `logprobs`: the number of likeliest tokens at each position of the answer; None:
    none. Raises RefusalError."""
    check_logprobs(logprobs, "logprobs")
    _check_ids(prompt, limits.vocabulary, "prompt")
    _check_ids(asked.stop_token_ids or (), limits.vocabulary, "stop_token_ids")
    defaults = tokenizer.defaults
    temperature = defaults.temperature if asked.temperature is None else asked.temperature
    top_k = defaults.top_k if asked.top_k is None else asked.top_k
    number = asked.n or 1
    if temperature == 0 and number > 1:
        raise bad_value(f"n must be 1 when using greedy sampling, got {number}.", "n")
    ends = Ends(
        tokenizer.end_id,
        frozenset(asked.stop_token_ids or ()) | (frozenset() if asked.ignore_eos else tokenizer.end_ids),
        asked.stops,
    )
    ask = Ask(
        prompt=tuple(prompt),
        number=number,
        max_tokens=answer_limit(len(prompt), max_tokens, limits.context_length, max_tokens_name),
        temperature=temperature,
        top_p=defaults.top_p if asked.top_p is None else asked.top_p,
        top_k=top_k if top_k > 0 else -1,
        seed=asked.seed,
        stop=_stop(ends, tokenizer),
        likeliest=logprobs or 0,
        prompt_likeliest=asked.prompt_logprobs,
    )
    return Plan(ask, ends)


def answer_limit(prompt: int, max_tokens: int | None, context_length: int, name: str = "max_tokens") -> int:
    """Longest answer to a prompt of that length, in tokens. Raises RefusalError, with vLLM's words."""
    if max_tokens is not None and max_tokens > context_length:
        raise bad_value(
            f"{name}={max_tokens} cannot be greater than max_model_len={context_length}. Please request fewer output"
            " tokens.",
            name,
        )
    if prompt > context_length:
        raise bad_value(
            f"This model's maximum context length is {context_length} tokens. However, your prompt contains {prompt}"
            " input tokens, which exceeds this limit even without any output tokens. Please reduce the length of the"
            " input prompt.",
            "input_tokens",
        )
    left = context_length - prompt
    allowed = left if max_tokens is None else min(left, max_tokens)
    if allowed < 1:
        raise bad_value(f"{name} must be at least 1, got {allowed}.", name)
    return allowed


def _stop(ends: Ends, tokenizer: Tokenizer) -> tuple[str, ...] | tuple[int, ...]:
    """For the service, which takes strings or ids. With strings the ids are spelled; answers are cut here anyway."""
    if not ends.strings:
        return tuple(sorted(ends.ids))
    spelled = (tokenizer.decode([token]) for token in sorted(ends.ids))
    return (*ends.strings, *(text for text in spelled if text))


def _check_ids(ids: Sequence[int], vocabulary: int, name: str) -> None:
    unknown = next((token for token in ids if not 0 <= token < vocabulary), None)
    if unknown is not None:
        raise bad_value(f"Token id {unknown} is out of vocabulary", name)
