"""An answer as clients see it: cut where vLLM would have ended it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from claas_inference_proxy.generation.plan import Ends
from claas_inference_proxy.prompts.tokenizer import LONGEST_CHARACTER
from claas_inference_proxy.upstream.sampling import Likeliest, PromptToken
from claas_inference_proxy.upstream.sampling import Sequence as SampledSequence


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True)
class AnswerToken:
    """One token of an answer, or of an echoed prompt."""

    id: int
    piece: str
    """The text that it adds to the answer."""
    logprob: float | None
    likeliest: Likeliest
    before: tuple[int, ...] = ()
    """The tokens before it, as far as its text depends on them."""


@dataclass(frozen=True)
class SampledAnswer:
    """One answer to a prompt."""

    tokens: tuple[AnswerToken, ...]
    finish: FinishReason
    stop: str | int | None
    """The string or token that ended it; None for its length, or the model's own end."""

    @property
    def text(self) -> str:
        return "".join(token.piece for token in self.tokens)

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]


def echoed(prompt: Sequence[int], told: Sequence[PromptToken | None]) -> list[AnswerToken]:
    """The tokens of a prompt, with what is told of them."""
    return [
        AnswerToken(
            token,
            "",
            None if found is None else found.logprob,
            () if found is None else found.likeliest,
            tuple(prompt[max(0, index - LONGEST_CHARACTER) : index]),
        )
        for index, (token, found) in enumerate(zip(prompt, told, strict=True))
    ]


@dataclass(frozen=True)
class _Cut:
    """Where an answer ends: after so many tokens, with so many characters."""

    tokens: int
    characters: int
    stop: str | int | None


def cut(sampled: SampledSequence, pieces: Sequence[str], ends: Ends, *, keep_stop: bool = False) -> SampledAnswer:
    """The answer up to the first of its ends. `pieces`: the text that each token adds. `keep_stop`: the text contains
    what ended it."""
    place = _first_end(sampled.tokens, pieces, ends, keep_stop)
    tokens = sampled.tokens if place is None else sampled.tokens[: place.tokens]
    left = sum(len(piece) for piece in pieces) if place is None else place.characters
    found = []
    for index, token in enumerate(tokens):
        piece = pieces[index][:left]
        left -= len(piece)
        found.append(
            AnswerToken(
                token,
                piece,
                sampled.logprobs[index] if sampled.logprobs else None,
                sampled.likeliest[index] if sampled.likeliest else (),
                tokens[max(0, index - LONGEST_CHARACTER) : index],
            )
        )
    if place is not None:
        return SampledAnswer(tuple(found), FinishReason.STOP, place.stop)
    return SampledAnswer(tuple(found), FinishReason.STOP if sampled.stopped else FinishReason.LENGTH, None)


def _first_end(tokens: Sequence[int], pieces: Sequence[str], ends: Ends, keep_stop: bool) -> _Cut | None:
    text = ""
    for index, (token, piece) in enumerate(zip(tokens, pieces, strict=True)):
        if token in ends.ids:
            characters = len(text) + (len(piece) if keep_stop else 0)
            return _Cut(index + 1, characters, None if token == ends.end_id else token)
        before = len(text)
        text += piece
        for string in ends.strings if piece else ():
            at = text.find(string, max(0, before - len(string) + 1))
            if at >= 0:
                return _Cut(index + 1, at + len(string) if keep_stop else at, string)
    return None
