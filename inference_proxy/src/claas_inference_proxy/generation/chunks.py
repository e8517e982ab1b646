"""A finished answer as the documents of a stream. The service does not stream, so all of them are there at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pydantic import JsonValue

from claas_inference_proxy.generation.answer import AnswerToken, SampledAnswer
from claas_inference_proxy.generation.documents import (
    FINGERPRINT,
    Document,
    Heading,
    Prompted,
    Shown,
    before_answer,
    chat_choice_logprobs,
    completion_choice_logprobs,
    counts,
    usage,
)
from claas_inference_proxy.generation.logprobs import width

_TOKENS = 8
"""Tokens in a chunk."""


def chat_chunks(
    heading: Heading, found: Prompted, shown: Shown, *, with_usage: bool, always_usage: bool
) -> Iterator[Document]:
    """The documents of `/v1/chat/completions`."""
    head = heading.document("chat.completion.chunk")
    asked = len(found.prompt)
    for index in range(len(found.answers)):
        delta: Document = {"role": shown.role, "content": ""}
        choice: Document = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        yield {
            **head,
            "choices": [choice],
            "prompt_token_ids": list[JsonValue](found.prompt) if shown.ids else None,
            "prompt_text": shown.prompt_text,
            **({"usage": counts(asked, 0)} if always_usage else {}),
        }
    for index, answer, tokens, done, last in _interleaved(found.answers):
        choice = {
            "index": index,
            "delta": {"content": "".join(token.piece for token in tokens)},
            "logprobs": chat_choice_logprobs(tokens, shown),
            "finish_reason": answer.finish.value if last else None,
            **({"stop_reason": answer.stop} if last else {}),
            "token_ids": [token.id for token in tokens] if shown.ids else None,
        }
        yield {
            **head,
            "choices": [choice],
            **({"usage": counts(asked, done)} if always_usage else {}),
            **({"system_fingerprint": FINGERPRINT} if last and not with_usage else {}),
        }
    if with_usage:
        yield {**head, "choices": [], "usage": usage([found]), "system_fingerprint": FINGERPRINT}


def completion_chunks(
    heading: Heading, prompts: Sequence[Prompted], shown: Shown, *, with_usage: bool, always_usage: bool
) -> Iterator[Document]:
    """The documents of `/v1/completions`."""
    head = heading.document("text_completion")
    places = [found for found in prompts for _ in found.answers]
    offsets = [0] * len(places)
    begun = [False] * len(places)
    for index, answer, tokens, done, last in _interleaved([each for found in prompts for each in found.answers]):
        found, first = places[index], not begun[index]
        begun[index] = True
        told = [*(before_answer(found) if first else ()), *tokens]
        logprobs = completion_choice_logprobs(told, shown, offset=offsets[index])
        offsets[index] += 0 if shown.logprobs is None else width(told, shown.spelling)
        choice: Document = {
            "index": index,
            "text": ((found.echo or "") if first else "") + "".join(token.piece for token in tokens),
            "logprobs": logprobs,
            "finish_reason": answer.finish.value if last else None,
            "stop_reason": answer.stop if last else None,
            # With an echo vLLM tells them unasked.
            "prompt_token_ids": list[JsonValue](found.prompt) if first and (shown.ids or found.echo) else None,
            "token_ids": [token.id for token in tokens] if shown.ids else None,
        }
        yield {
            **head,
            "choices": [choice],
            **({"usage": counts(len(found.prompt), done)} if always_usage else {}),
            **({"system_fingerprint": FINGERPRINT} if last and not with_usage else {}),
        }
    if with_usage:
        yield {**head, "choices": [], "usage": usage(prompts), "system_fingerprint": FINGERPRINT}


def _interleaved(
    answers: Iterable[SampledAnswer],
) -> Iterator[tuple[int, SampledAnswer, Sequence[AnswerToken], int, bool]]:
    """Index, answer, some of its tokens, how many it has had with them, whether they are its last; in turns."""
    waiting = [(index, answer, 0) for index, answer in enumerate(answers)]
    while waiting:
        following = []
        for index, answer, start in waiting:
            end = min(start + _TOKENS, len(answer.tokens))
            last = end == len(answer.tokens)
            yield index, answer, answer.tokens[start:end], end, last
            if not last:
                following.append((index, answer, end))
        waiting = following
