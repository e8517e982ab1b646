"""Connections that are kept, and those that the server is about to close."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from claas_vllm_client import VllmClient


class Counting:
    """A server that answers every request with 200 and counts connections."""

    def __init__(self) -> None:
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
            await writer.drain()


@asynccontextmanager
async def counting() -> AsyncIterator[tuple[Counting, VllmClient]]:
    counted = Counting()
    server = await asyncio.start_server(counted.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with VllmClient(f"http://127.0.0.1:{port}") as client:
        yield counted, client
    server.close()


async def test_requests_that_follow_each_other_share_a_connection() -> None:
    async with counting() as (server, client):
        for _ in range(3):
            assert await client.health()
        assert server.connections == 1


async def test_a_connection_that_was_idle_is_not_used_when_the_server_may_be_closing_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("claas_vllm_client.transport._KEEP_ALIVE_SECONDS", 0.2)
    async with counting() as (server, client):
        assert await client.health()
        await asyncio.sleep(0.4)
        assert await client.health()
        assert server.connections == 2


def test_connections_are_kept_for_less_than_vllm_keeps_them() -> None:
    from claas_vllm_client import transport

    # uvicorn's default, and VLLM_HTTP_TIMEOUT_KEEP_ALIVE's.
    assert transport._KEEP_ALIVE_SECONDS < 5
