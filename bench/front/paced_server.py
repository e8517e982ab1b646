"""A server whose streams get a token each at the same moments, as those of one GPU's batch do. It speaks as vLLM with
the companion does and takes little processor time, so that what is measured is what stands before it.

    python bench/front/paced_server.py PORT MILLISECONDS
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from typing import cast

import uvloop

MODEL = "coder"
TOKEN = "the-control-token"
_FRAME = (
    'data: {"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion.chunk","created":1764230000,'
    f'"model":"{MODEL}","choices":[{{"index":0,"delta":{{"content":" word"}},"logprobs":null,'
    '"finish_reason":%s,"token_ids":null}]}\n\n'
)
_DONE = b"data: [DONE]\n\n"
_ANSWER = (
    '{"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion","created":1764230000,'
    f'"model":"{MODEL}","choices":[{{"index":0,"message":{{"role":"assistant","content":" word"}},"logprobs":null,'
    '"finish_reason":"stop","stop_reason":null,"token_ids":null}],'
    '"usage":{"prompt_tokens":64,"completion_tokens":1,"total_tokens":65}}'
).encode()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


MIDDLE = _chunk((_FRAME % "null").encode())
LAST = _chunk((_FRAME % '"stop"').encode())


def _record(tokens: int) -> bytes:
    output = {"index": 0, "token_ids": [1000 + each for each in range(tokens)], "finish_reason": "stop"}
    call = {"prompt_token_ids": list(range(64)), "sampling": {"temperature": 1.0}, "finished": True}
    return json.dumps({"v": 1, "version": f"{MODEL}@7", "calls": [{**call, "outputs": [output]}]}).encode()


@dataclass(slots=True, eq=False)
class _Stream:
    transport: asyncio.Transport
    left: int
    tokens: int
    recorded: bool


class _Streams:
    """All streams that run."""

    def __init__(self) -> None:
        self._running: set[_Stream] = set()
        self._records: dict[int, bytes] = {}

    def add(self, stream: _Stream) -> None:
        """A stream begins."""
        self._running.add(stream)

    def drop(self, transport: asyncio.Transport) -> None:
        """A client has gone."""
        self._running = {each for each in self._running if each.transport is not transport}

    def step(self) -> None:
        """A token for each."""
        for stream in list(self._running):
            stream.left -= 1
            stream.transport.write(MIDDLE if stream.left else LAST)
            if not stream.left:
                self._running.discard(stream)
                end = _chunk(_DONE)
                if stream.recorded:
                    end += _chunk(b": claas-record " + self.record(stream.tokens) + b"\n\n")
                stream.transport.write(end + b"0\r\n\r\n")

    def record(self, tokens: int) -> bytes:
        """The record of an answer of so many tokens."""
        if tokens not in self._records:
            self._records[tokens] = _record(tokens)
        return self._records[tokens]


class _Connection(asyncio.Protocol):
    def __init__(self, streams: _Streams) -> None:
        self._streams = streams
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's are no subclass.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._streams.drop(self._transport)

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = self._data[:end].lower()
            _, _, length = head.partition(b"content-length:")
            size = int(length.split(b"\r\n")[0]) if length else 0
            if len(self._data) < end + 4 + size:
                return
            body, self._data = self._data[end + 4 : end + 4 + size], self._data[end + 4 + size :]
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        recorded = b"x-claas-record:" in head and TOKEN.encode() in head
        if head.startswith(b"get"):
            self._whole(b'{"records": true, "is_sleeping": false}', b"")
            return
        asked = json.loads(body)
        if not asked.get("stream"):
            record = self._streams.record(1) if recorded else b""
            self._whole(_ANSWER + record, b"x-claas-record: tail=%d\r\n" % len(record) if recorded else b"")
            return
        more = b"x-claas-record: comment\r\n" if recorded else b""
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
            b"transfer-encoding: chunked\r\n" + more + b"\r\n"
        )
        tokens = int(asked["max_tokens"])
        self._streams.add(_Stream(self._transport, tokens, tokens, recorded))

    def _whole(self, body: bytes, more: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n" % len(body)
        self._transport.write(head + more + b"\r\n" + body)


async def serve(port: int, milliseconds: float) -> None:
    """Serve until the process ends."""
    loop, streams = asyncio.get_running_loop(), _Streams()
    await loop.create_server(lambda: _Connection(streams), "127.0.0.1", port)
    following = loop.time()
    while True:
        following += milliseconds / 1000
        await asyncio.sleep(max(0.0, following - loop.time()))
        streams.step()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), float(sys.argv[2])))
