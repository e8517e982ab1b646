"""The texts of an answer, from its bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec


class _Said(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Said | None = None
    message: _Said | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int | None = None


class _Frame(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: dict[str, object] | str | None = None


_FRAME = msgspec.json.Decoder(_Frame)


@dataclass(slots=True)
class Said:
    """One answer."""

    pieces: list[str] = field(default_factory=list)
    finish_reason: str | None = None

    @property
    def text(self) -> str:
        """What was said, thinking included if the server left it there."""
        return "".join(self.pieces)


@dataclass(slots=True)
class Answers:
    """All answers to a request."""

    said: dict[int, Said] = field(default_factory=dict)
    completion_tokens: int | None = None
    """What the server counted, if it told."""
    failed: bool = False
    """Whether the server told of an error in the midst."""

    def add(self, document: bytes) -> None:
        """Take in one JSON document: a whole answer, or an event's data. What is no such document is skipped."""
        try:
            frame = _FRAME.decode(document)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        if frame.error is not None:
            self.failed = True
        if frame.usage is not None and frame.usage.completion_tokens is not None:
            self.completion_tokens = frame.usage.completion_tokens
        for choice in frame.choices:
            said = self.said.get(choice.index)
            if said is None:
                said = self.said[choice.index] = Said()
            part = choice.delta or choice.message
            text = part.content if part is not None else choice.text
            if text:
                said.pieces.append(text)
            if choice.finish_reason is not None:
                said.finish_reason = choice.finish_reason


def data_of(pieces: Iterable[bytes]) -> list[bytes]:
    """The JSON documents in the events of a stream."""
    return [line[6:] for line in b"".join(pieces).split(b"\n") if line.startswith(b"data: {")]


def of_documents(documents: Iterable[bytes]) -> Answers:
    """The answers in JSON documents: the one of an answer at once, or those of a stream's events."""
    answers = Answers()
    for document in documents:
        answers.add(document)
    return answers
