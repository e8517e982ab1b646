"""Answers on their way to clients: the name that was asked for instead of the version's, and what else there is."""

import json
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from claas_vllm.asgi import (
    Message,
    Send,
    is_event_stream,
    is_json,
    parse_object,
    with_length,
)

_NAMES_TOLD = 50
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]:,]')
_PLACES: tuple[tuple[bytes, ...], ...] = ((), (b'"response"',), (b'"message"',))
"""The objects whose `model` says who answers: an answer itself, or the one within an event of /v1/responses or
/v1/messages."""


@dataclass(frozen=True)
class Edit:
    """What becomes of a body: `edit` gets it whole, or else by whole lines as they come."""

    edit: Callable[[bytes], Awaitable[bytes]]
    whole: bool


class EditedAnswer:
    """A `send` that hands an answer on with its body edited, as `choose` says when it sees the answer begin."""

    def __init__(self, send: Send, choose: Callable[[Message], Edit | None]) -> None:
        self._send = send
        self._choose = choose
        self._edit: Edit | None = None
        self._start: Message = {}
        self._held = b""

    async def __call__(self, message: Message) -> None:
        """Hand one message on, or hold it until there is enough to edit."""
        if message["type"] == "http.response.start":
            self._edit = self._choose(message)
            self._start = message
            if self._edit is not None and self._edit.whole:
                return
        elif message["type"] == "http.response.body" and self._edit is not None:
            self._held += message.get("body", b"")
            more = message.get("more_body", False)
            # A line is an event's data, or its end: nothing is held back that a client could use.
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
    """A `send` for the answer of `target` to who asked for `asked`, which may be the same: it says `asked` where vLLM
    says `target`, and to vLLM's 404 of an unknown model it adds the `names` there are."""
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
    """One JSON document with another `model`, byte for byte the same otherwise.

    Within a JSON string each quote has a backslash before it, so the pattern finds keys only; which object a key is
    of, what stands before it tells.
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
    """Where in a JSON document a place is."""

    def __init__(self, document: bytes) -> None:
        self._document = document
        self._scanned = 0
        self._open: list[bytes] = []
        self._key = self._text = b""

    def at(self, place: int) -> tuple[bytes, ...]:
        """The keys of the objects around a place, without the outermost; a place further on than the last one."""
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
