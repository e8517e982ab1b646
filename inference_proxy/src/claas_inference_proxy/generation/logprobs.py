"""Log-probabilities in the shapes of vLLM's answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from claas_inference_proxy.generation.answer import AnswerToken
from claas_inference_proxy.prompts.tokenizer import Tokenizer
from claas_inference_proxy.upstream.sampling import Likeliest, PromptToken


@dataclass(frozen=True)
class Spelling:
    """How tokens are named: by their text, or as `token_id:7`."""

    tokenizer: Tokenizer
    as_ids: bool

    def name(self, token: int) -> str:
        return f"token_id:{token}" if self.as_ids else self.tokenizer.token_text(token)

    def width(self, token: int) -> int:
        """How far the next token's offset lies behind."""
        return len(self.name(token))


def chat_logprobs(tokens: Sequence[AnswerToken], number: int, spelling: Spelling) -> JsonValue:
    """Of `/v1/chat/completions`: each token, with `number` candidates, the sampled one first."""
    content: list[JsonValue] = []
    for token in tokens:
        candidates = _with_own(token.id, token.logprob, token.likeliest)[:number]
        content.append(
            {
                "token": spelling.name(token.id),
                "logprob": token.logprob,
                "bytes": _bytes(spelling.tokenizer.token_text(token.id)),
                "top_logprobs": [
                    {"token": spelling.name(each), "logprob": value, "bytes": _bytes(spelling.name(each))}
                    for each, value in candidates
                ],
            }
        )
    return {"content": content}


def completion_logprobs(
    tokens: Sequence[AnswerToken | tuple[int, PromptToken | None]],
    number: int,
    spelling: Spelling,
    *,
    offset: int = 0,
) -> JsonValue:
    """Of `/v1/completions`: the sampled token and `number` others at most. Tokens of an echoed prompt are pairs of id
    and what is told of them. `offset`: of the first one."""
    offsets: list[JsonValue] = []
    names: list[JsonValue] = []
    logprobs: list[JsonValue] = []
    likeliest: list[JsonValue] = []
    for token in tokens:
        own, value, candidates = _told(token)
        offsets.append(offset)
        names.append(spelling.name(own))
        logprobs.append(value)
        if value is None:
            likeliest.append(None)
        else:
            best = _with_own(own, value, candidates)[: number + 1]
            likeliest.append({spelling.name(each): found for each, found in best})
        offset += spelling.width(own)
    return {"text_offset": offsets, "token_logprobs": logprobs, "tokens": names, "top_logprobs": likeliest}


def prompt_logprobs(ids: Sequence[int], told: Sequence[PromptToken | None], tokenizer: Tokenizer) -> list[JsonValue]:
    """`prompt_logprobs`: the prompt's token and its candidates, by id. The service does not tell the rank of a token
    that is none of the likeliest."""
    positions: list[JsonValue] = []
    for token, found in zip(ids, told, strict=True):
        if found is None:
            positions.append(None)
            continue
        ranks = {each: rank for rank, (each, _) in enumerate(found.likeliest, start=1)}
        positions.append(
            {
                str(each): {
                    "logprob": value,
                    "rank": ranks.get(each),
                    "decoded_token": tokenizer.token_text(each),
                }
                for each, value in _with_own(token, found.logprob, found.likeliest)
            }
        )
    return positions


def _told(token: AnswerToken | tuple[int, PromptToken | None]) -> tuple[int, float | None, Likeliest]:
    if isinstance(token, AnswerToken):
        return token.id, token.logprob, token.likeliest
    own, found = token
    return own, None if found is None else found.logprob, () if found is None else found.likeliest


def _with_own(own: int, logprob: float | None, likeliest: Likeliest) -> list[tuple[int, float]]:
    """The token itself and the candidates, none twice."""
    first = [] if logprob is None else [(own, logprob)]
    return [*first, *(each for each in likeliest if each[0] != own)]


def _bytes(text: str) -> list[JsonValue]:
    return list[JsonValue](text.encode("utf-8", errors="replace"))
