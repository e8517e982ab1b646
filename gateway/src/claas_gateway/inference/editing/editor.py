"""Edits an answer on its way to the client: names the model as it was asked for, takes out what was only asked for to
be recorded, and thinking.

What needs no edit is not parsed, and goes through byte for byte.
"""

from __future__ import annotations

from typing import cast

import msgspec
from pydantic import JsonValue

from claas_gateway.inference.editing.thinking import ThinkingFilter
from claas_gateway.inference.recording.wire import Injection
from claas_gateway.rollouts.visible import visible_text

_DATA = b"data: "
_END = b"\n\n"
_anything = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class Editor:
    """Edits one answer."""

    def __init__(self, served: str, asked: str, injection: Injection | None, *, hide_thinking: bool) -> None:
        """`served`: the model's name in the answer; `asked`: what the client called it."""
        renamed = served != asked
        self._old = b'"model":' + _encode(served) if renamed else b""
        self._new = b'"model":' + _encode(asked)
        self._injection = injection
        self._hides = hide_thinking
        self._filters: dict[int, ThinkingFilter] = {}
        self._busy = False

    def events(self, events: bytes) -> bytes:
        """Whole events, edited."""
        if self._injection is not None:
            events = self._injection.strip_events(events)
        if self._old:
            # Quotes inside a JSON string are escaped, so this is a key.
            events = events.replace(self._old, self._new)
        if self._hides and (self._busy or b"<" in events):
            events = _END.join(map(self._event, events.split(_END)))
            self._busy = not all(each.idle for each in self._filters.values())
        return events

    def document(self, body: bytes) -> bytes:
        """A JSON answer, edited."""
        if self._injection is not None:
            body = self._injection.strip_document(body)
        if self._old:
            body = body.replace(self._old, self._new, 1)
        if self._hides and b"<" in body:
            body = _without_thinking(body)
        return body

    def _event(self, event: bytes) -> bytes:
        document = _object(event[len(_DATA) :]) if event.startswith(_DATA) else None
        if document is None:
            return event
        changed = False
        for choice in _objects(document.get("choices")):
            delta, index = choice.get("delta"), choice.get("index")
            if not isinstance(delta, dict) or not isinstance(index, int):
                continue
            content = delta.get("content")
            thinking = self._filters.setdefault(index, ThinkingFilter())
            text = content if isinstance(content, str) else ""
            shown = thinking.feed(text)
            if choice.get("finish_reason") is not None:
                shown += thinking.end()
            if shown != text:
                delta["content"] = shown
                changed = True
        return _DATA + _encode(document) if changed else event


def _without_thinking(body: bytes) -> bytes:
    document = _object(body)
    changed = False
    for choice in _objects((document or {}).get("choices")):
        message = choice.get("message")
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(message, dict) and isinstance(content, str):
            shown = visible_text(content)
            changed = changed or shown != content
            message["content"] = shown
    return _encode(document) if changed else body


def _object(data: bytes) -> dict[str, JsonValue] | None:
    try:
        document = _anything(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return cast(dict[str, JsonValue], document) if isinstance(document, dict) else None


def _objects(value: JsonValue) -> list[dict[str, JsonValue]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
