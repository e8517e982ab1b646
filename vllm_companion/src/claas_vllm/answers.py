"""Edits answers to clients: replaces the version's name by the requested name, and lists the models in a 404."""

import json
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from claas_vllm.asgi import Message, Send, is_event_stream, is_json, parse_object, with_length

_NAMES_TOLD = 50
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]:,]')
_PLACES: tuple[tuple[bytes, ...], ...] = ((), (b'"response"',), (b'"message"',))
"""Objects whose `model` names the model that answers: the answer itself, or the object inside an event of
/v1/responses or /v1/messages."""


@dataclass(frozen=True)
class Edit:
    """How to edit a body: `edit` gets it as a whole, or line by line as it is streamed."""

    edit: Callable[[bytes], Awaitable[bytes]]
    whole: bool


class EditedAnswer:
    """A `send` that edits the body of an answer; `choose` decides how, at the start of the answer."""

    def __init__(self, send: Send, choose: Callable[[Message], Edit | None]) -> None:
        self._send = send
        self._choose = choose
        self._edit: Edit | None = None
        self._start: Message = {}
        self._held = b""

    async def __call__(self, message: Message) -> None:
        """Pass on one message, or hold it until it is complete enough to edit."""
        if message["type"] == "http.response.start":
            self._edit = self._choose(message)
            self._start = message
            if self._edit is not None and self._edit.whole:
                return
        elif message["type"] == "http.response.body" and self._edit is not None:
            self._held += message.get("body", b"")
            more = message.get("more_body", False)
            # A line is an event's data or its end, so clients lose nothing by waiting for whole lines.
            ready = len(self._held) if not more else 0 if self._edit.whole else self._held.rfind(b"\n") + 1
            if more and not ready:
                return
            body = await self._edit.edit(self._held[:ready])
            self._held = self._held[ready:]
            if self._edit.whole:
                headers = with_length(self._start.get("headers", []), len(body))
                await self._send({**self._start, "headers": headers})
            message = {**message, "body": body}
        await self._send(message)


def naming(send: Send, asked: str, target: str, names: Callable[[], Awaitable[Iterable[str]]]) -> Send:
    """A `send` for an answer of `target` to a request for `asked` (possibly the same): replaces `target` by `asked`,
    and adds the known `names` to vLLM's 404 for an unknown model."""
    pattern = re.compile(rb'("model"\s*:\s*")' + re.escape(target.encode()) + rb'(?=")')

    async def rename(body: bytes) -> bytes:
        return _renamed(body, pattern, asked.encode())

    async def rename_lines(lines: bytes) -> bytes:
        return b"".join(_renamed(line, pattern, asked.encode()) for line in lines.splitlines(keepends=True))

    async def explain(body: bytes) -> bytes:
        return await _explained(body, asked, target, names)

    def choose(start: Message) -> Edit | None:
        headers = start.get("headers", [])
        if start["status"] == 404 and is_json(headers):
            return Edit(explain, whole=True)
        if asked == target:
            return None
        if is_event_stream(headers):
            return Edit(rename_lines, whole=False)
        return Edit(rename, whole=True) if is_json(headers) else None

    return EditedAnswer(send, choose)


async def _explained(body: bytes, asked: str, target: str, names: Callable[[], Awaitable[Iterable[str]]]) -> bytes:
    document = parse_object(body) or {}
    error = document.get("error")
    message = error.get("message") if isinstance(error, dict) else None
    if error is None or not isinstance(message, str) or f"`{target}`" not in message:
        return body
    there = sorted(await names())
    told = ", ".join([*there[:_NAMES_TOLD], *(["..."] if len(there) > _NAMES_TOLD else [])])
    said = message.replace(f"`{target}`", f"`{asked}`").rstrip()
    document["error"] = {**error, "message": f"{said} This server has: {told}"}
    return json.dumps(document, separators=(",", ":")).encode()


def _renamed(document: bytes, pattern: re.Pattern[bytes], name: bytes) -> bytes:
    """A JSON document with another `model`, otherwise unchanged byte for byte. Quotes inside JSON strings are
    escaped, so the pattern finds keys only; the text before a key determines its object.
    """
    pieces: list[bytes] = []
    done = 0
    path = _Path(document)
    for match in pattern.finditer(document):
        if path.at(match.start()) in _PLACES:
            pieces += [document[done : match.end(1)], name]
            done = match.end()
    return b"".join([*pieces, document[done:]]) if pieces else document


class _Path:
    """Tracks the nesting of objects in a JSON document."""

    def __init__(self, document: bytes) -> None:
        self._document = document
        self._scanned = 0
        self._open: list[bytes] = []
        self._key = self._text = b""

    def at(self, place: int) -> tuple[bytes, ...]:
        """Keys of the objects around a position, without the outermost; positions must be increasing."""
        for match in _TOKEN.finditer(self._document, self._scanned, place):
            token = match[0]
            if token in b"{[":
                self._open.append(self._key if token == b"{" else token)
            elif token in b"}]":
                self._open[-1:] = []
            elif token == b":":
                self._key = self._text
            elif token != b",":
                self._text = token
        self._scanned = place
        return tuple(self._open[1:])
