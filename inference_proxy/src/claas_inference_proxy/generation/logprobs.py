"""Log-probabilities in the shapes of vLLM's answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from claas_inference_proxy.generation.answer import AnswerToken
from claas_inference_proxy.prompts.tokenizer import Tokenizer


@dataclass(frozen=True)
class Spelling:
    """How tokens are named: by their text, or as `token_id:7`."""

    tokenizer: Tokenizer
    as_ids: bool

    def text(self, place: AnswerToken, token: int | None = None) -> str:
        """The text of a token, or of a candidate in its place."""
        return self.tokenizer.token_text(place.id if token is None else token, place.before)

    def name(self, place: AnswerToken, token: int | None = None) -> str:
        """The name of a token, or of a candidate in its place."""
        return f"token_id:{place.id if token is None else token}" if self.as_ids else self.text(place, token)


def chat_logprobs(tokens: Sequence[AnswerToken], number: int, spelling: Spelling) -> JsonValue:
    """Of `/v1/chat/completions`: each token, with `number` candidates, the sampled one first."""
    content: list[JsonValue] = []
    for token in tokens:
        named = [(spelling.name(token, each), value) for each, value in _with_own(token)[:number]]
        content.append(
            {
                "token": spelling.name(token),
                "logprob": token.logprob,
                "bytes": _bytes(spelling.text(token)),
                "top_logprobs": [{"token": name, "logprob": value, "bytes": _bytes(name)} for name, value in named],
            }
        )
    return {"content": content}


def completion_logprobs(
    tokens: Sequence[AnswerToken], number: int, spelling: Spelling, *, offset: int = 0
) -> JsonValue:
    """Of `/v1/completions`: each token and `number` others at most. `offset`: of the first one."""
    offsets: list[JsonValue] = []
    likeliest: list[JsonValue] = []
    for token in tokens:
        offsets.append(offset)
        offset += len(spelling.name(token))
        best = {spelling.name(token, each): value for each, value in _with_own(token)[: number + 1]}
        likeliest.append(None if token.logprob is None else dict[str, JsonValue](best))
    return {
        "text_offset": offsets,
        "token_logprobs": [token.logprob for token in tokens],
        "tokens": [spelling.name(token) for token in tokens],
        "top_logprobs": likeliest,
    }


def width(tokens: Sequence[AnswerToken], spelling: Spelling) -> int:
    """How far the offset behind some tokens lies from that of the first one."""
    return sum(len(spelling.name(token)) for token in tokens)


def prompt_logprobs(tokens: Sequence[AnswerToken], spelling: Spelling) -> list[JsonValue]:
    """`prompt_logprobs`: the prompt's token and its candidates, by id. The service does not tell the rank of a token
    that is none of the likeliest."""
    positions: list[JsonValue] = []
    for token in tokens:
        ranks = {each: rank for rank, (each, _) in enumerate(token.likeliest, start=1)}
        told: dict[str, JsonValue] = {
            str(each): {"logprob": value, "rank": ranks.get(each), "decoded_token": spelling.text(token, each)}
            for each, value in _with_own(token)
        }
        positions.append(None if token.logprob is None else told)
    return positions


def _with_own(token: AnswerToken) -> list[tuple[int, float]]:
    """The token itself and the candidates, none twice."""
    first = [] if token.logprob is None else [(token.id, token.logprob)]
    return [*first, *(each for each in token.likeliest if each[0] != token.id)]


def _bytes(text: str) -> list[JsonValue]:
    return list[JsonValue](text.encode("utf-8", errors="replace"))
