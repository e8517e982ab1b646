"""Answers as documents, with the fields of vLLM 0.32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from claas_inference_proxy.generation.answer import AnswerToken, SampledAnswer, echoed
from claas_inference_proxy.generation.logprobs import Spelling, chat_logprobs, completion_logprobs, prompt_logprobs
from claas_inference_proxy.upstream.sampling import PromptToken

Document = dict[str, JsonValue]

FINGERPRINT = "claas-inference-proxy"


@dataclass(frozen=True)
class Heading:
    """What all documents of one answer have in common."""

    id: str
    created: int
    """Unix time, in seconds."""
    model: str

    def document(self, kind: str) -> Document:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


@dataclass(frozen=True)
class Shown:
    """What a client asked to see of tokens."""

    spelling: Spelling
    logprobs: int | None
    """Number of candidates for each token; None: no log-probabilities."""
    ids: bool
    role: str = "assistant"
    prompt_text: str | None = None


@dataclass(frozen=True)
class Prompted:
    """The answers to one prompt. `told`: what is told of the prompt's tokens. `echo`: the prompt's text, if it is to
    stand before each answer."""

    prompt: tuple[int, ...]
    answers: tuple[SampledAnswer, ...]
    told: tuple[PromptToken | None, ...] | None = None
    echo: str | None = None


def usage(prompts: Sequence[Prompted]) -> Document:
    """The numbers of tokens of all prompts and answers."""
    asked = sum(len(each.prompt) for each in prompts)
    return counts(asked, sum(len(answer.tokens) for each in prompts for answer in each.answers))


def counts(prompt: int, completion: int) -> Document:
    return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}


def whole_usage(prompts: Sequence[Prompted]) -> Document:
    """The same for an answer that is not streamed."""
    return {**usage(prompts), "prompt_tokens_details": None, "completion_tokens_details": None}


def chat_document(heading: Heading, found: Prompted, shown: Shown) -> Document:
    """The answer of `/v1/chat/completions`."""
    return {
        **heading.document("chat.completion"),
        "choices": [_chat_choice(index, answer, shown) for index, answer in enumerate(found.answers)],
        "service_tier": None,
        "system_fingerprint": FINGERPRINT,
        "usage": whole_usage([found]),
        "prompt_logprobs": _prompt_logprobs(found, shown),
        "prompt_token_ids": list[JsonValue](found.prompt) if shown.ids else None,
        "prompt_text": shown.prompt_text,
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "metrics": None,
    }


def _chat_choice(index: int, answer: SampledAnswer, shown: Shown) -> Document:
    return {
        "index": index,
        "message": {
            "role": shown.role,
            "content": answer.text,
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "reasoning": None,
        },
        "logprobs": chat_choice_logprobs(answer.tokens, shown),
        "finish_reason": answer.finish.value,
        "stop_reason": answer.stop,
        "token_ids": list[JsonValue](answer.ids) if shown.ids else None,
        "routed_experts": None,
    }


def completion_document(heading: Heading, prompts: Sequence[Prompted], shown: Shown) -> Document:
    """The answer of `/v1/completions`: the choices of all prompts, one after the other."""
    choices = [(found, answer) for found in prompts for answer in found.answers]
    return {
        **heading.document("text_completion"),
        "choices": [_completion_choice(index, *choice, shown) for index, choice in enumerate(choices)],
        "service_tier": None,
        "system_fingerprint": FINGERPRINT,
        "usage": whole_usage(prompts),
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "metrics": None,
    }


def _completion_choice(index: int, found: Prompted, answer: SampledAnswer, shown: Shown) -> Document:
    return {
        "index": index,
        "text": (found.echo or "") + answer.text,
        "logprobs": completion_choice_logprobs([*before_answer(found), *answer.tokens], shown),
        "finish_reason": answer.finish.value,
        "stop_reason": answer.stop,
        "token_ids": list[JsonValue](answer.ids) if shown.ids else None,
        "prompt_logprobs": _prompt_logprobs(found, shown),
        "prompt_token_ids": list[JsonValue](found.prompt) if shown.ids else None,
        "routed_experts": None,
    }


def completion_choice_logprobs(tokens: Sequence[AnswerToken], shown: Shown, *, offset: int = 0) -> JsonValue:
    """Of some tokens of a choice, or of an echoed prompt and them."""
    return (
        None if shown.logprobs is None else completion_logprobs(tokens, shown.logprobs, shown.spelling, offset=offset)
    )


def before_answer(found: Prompted) -> list[AnswerToken]:
    """The tokens of an echoed prompt, which are told of like those of the answer."""
    return [] if found.echo is None else echoed(found.prompt, found.told or (None,) * len(found.prompt))


def chat_choice_logprobs(tokens: Sequence[AnswerToken], shown: Shown) -> JsonValue:
    """Of some tokens of a choice."""
    return None if shown.logprobs is None else chat_logprobs(tokens, shown.logprobs, shown.spelling)


def _prompt_logprobs(found: Prompted, shown: Shown) -> JsonValue:
    return None if found.told is None else prompt_logprobs(echoed(found.prompt, found.told), shown.spelling)
