"""Serves `GET /progress`, the trainer's progress as JSON, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus

from claas_contract.places import PROGRESS_PATH
from claas_contract.progress import Progress

_REQUEST_TIMEOUT_SECONDS = 5.0
_REQUEST_LIMIT_BYTES = 16 * 1024


async def serve_progress(port: int, current: Callable[[], Progress]) -> asyncio.Server:
    """Listen on all addresses. Raises OSError if the port is taken."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_REQUEST_TIMEOUT_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(_response(head, current))
                await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass
        finally:
            writer.close()

    return await asyncio.start_server(answer, port=port, limit=_REQUEST_LIMIT_BYTES)


def _response(head: bytes, current: Callable[[], Progress]) -> bytes:
    words = head.split(b"\r\n", 1)[0].split(b" ")
    if len(words) != 3:
        return _message(HTTPStatus.BAD_REQUEST, b"")
    method, target, _ = words
    if target.split(b"?", 1)[0] != PROGRESS_PATH.encode():
        return _message(HTTPStatus.NOT_FOUND, b"")
    if method != b"GET":
        return _message(HTTPStatus.METHOD_NOT_ALLOWED, b"", "Allow: GET\r\n")
    return _message(HTTPStatus.OK, current().model_dump_json().encode())


def _message(status: HTTPStatus, body: bytes, headers: str = "") -> bytes:
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\nCache-Control: no-store\r\n"
        f"{headers}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("ascii") + body
