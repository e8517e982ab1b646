"""Token ids from a server that does not record: asked for with the answer, and taken out of it again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import cast

import msgspec
from pydantic import JsonValue

from claas_gateway.inference.recording.record import Record, Sampled
from claas_gateway.inference.request import Asked
from claas_gateway.records import Evidence, RolloutKind

_DATA = b"data: "
_END = b"\n\n"
_anything = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Injection:
    """What was asked for beside what the client asked for, and must not reach it."""

    ids: bool
    logprobs: bool
    usage: bool

    def strip_document(self, body: bytes) -> bytes:
        """An answer without it."""
        if not (self.ids or self.logprobs):
            return body
        document = _object(body)
        if document is None:
            return body
        self._strip(document)
        return _encode(document)

    def strip_events(self, events: bytes) -> bytes:
        """Whole events without it. Events that the server sent for its sake alone are dropped."""
        kept = []
        for event in events.split(_END):
            document = _object(event[len(_DATA) :]) if event.startswith(_DATA) else None
            if document is None:
                kept.append(event)
            elif self._needed(document):
                self._strip(document)
                kept.append(_DATA + _encode(document))
        return _END.join(kept)

    def _needed(self, document: dict[str, JsonValue]) -> bool:
        """Whether the server would have sent an event without it."""
        choices = _objects(document.get("choices"))
        if not choices:
            return not (self.usage and document.get("usage") is not None)
        if not (self.ids or self.logprobs):
            return True
        own = [name for name, ours in (("token_ids", self.ids), ("logprobs", self.logprobs)) if not ours]
        return any(
            choice.get("delta") != {} or any(choice.get(name) is not None for name in ("finish_reason", *own))
            for choice in choices
        )

    def _strip(self, document: dict[str, JsonValue]) -> None:
        # Without them the server says null where it has the field.
        for holder in (document, *_objects(document.get("choices"))):
            for name in ("prompt_token_ids", "token_ids") if self.ids else ():
                if name in holder:
                    holder[name] = None
            if self.logprobs and "logprobs" in holder:
                holder["logprobs"] = None


def inject(asked: Asked, model: str, *, logprobs: bool) -> tuple[bytes, Injection]:
    """The body that asks for token ids too, and what that adds to the answer."""
    chat = asked.kind is RolloutKind.CHAT
    changes: dict[str, JsonValue] = {"model": model}
    injection = Injection(
        # An echo with ids has them in place of the prompt's text.
        ids=not asked.flag("return_token_ids") and (chat or not asked.flag("echo")),
        logprobs=logprobs and not (asked.flag("logprobs") if chat else asked.has("logprobs")),
        usage=asked.stream and not asked.wants_usage(),
    )
    if injection.ids:
        changes["return_token_ids"] = True
    if injection.logprobs:
        changes["logprobs"] = True if chat else 0
    if injection.usage:
        changes["stream_options"] = {**asked.stream_options(), "include_usage": True}
    return asked.changed(**changes), injection


@dataclass(slots=True)
class _Gathered:
    prompt: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str | None = None


class _Token(msgspec.Struct):
    logprob: float = 0.0


class _Logprobs(msgspec.Struct):
    content: list[_Token] | None = None
    token_logprobs: list[float | None] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None


class _Frame(msgspec.Struct):
    choices: list[_Choice] = []
    prompt_token_ids: list[int] | None = None


_FRAME = msgspec.json.Decoder(_Frame)


def wire_record(documents: Iterable[bytes], version: int | None) -> Record:
    """What the documents of an answer tell of its tokens."""
    prompt: list[int] = []
    found: dict[int, _Gathered] = {}
    for document in documents:
        try:
            frame = _FRAME.decode(document)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        prompt = frame.prompt_token_ids or prompt
        for choice in frame.choices:
            gathered = found.setdefault(choice.index, _Gathered())
            gathered.prompt += choice.prompt_token_ids or ()
            gathered.ids += choice.token_ids or ()
            gathered.finish_reason = choice.finish_reason or gathered.finish_reason
            if choice.logprobs is not None:
                gathered.logprobs += [each.logprob for each in choice.logprobs.content or ()]
                gathered.logprobs += [each for each in choice.logprobs.token_logprobs or () if each is not None]
    answers = {
        index: Sampled(
            prompt_token_ids=tuple(gathered.prompt or prompt),
            token_ids=tuple(gathered.ids),
            logprobs=tuple(gathered.logprobs),
            finish_reason=gathered.finish_reason,
        )
        for index, gathered in found.items()
    }
    return Record(Evidence.WIRE, version, answers)


def _object(data: bytes) -> dict[str, JsonValue] | None:
    try:
        document = _anything(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return cast(dict[str, JsonValue], document) if isinstance(document, dict) else None


def _objects(value: JsonValue) -> list[dict[str, JsonValue]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
