"""Which bytes of a Secret are a token, and that what is one reaches the server as it is."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from claas_vllm_client import VllmClient
from claas_vllm_client.tokens import token_fault, token_text

NO_TOKENS = [
    (b"", "is empty"),
    (b"\n \t", "is empty"),
    (b"Zm9v\nYmFy\n", "has a line break inside (byte 5 of 9)"),
    (b"one\r\ntwo", "has a line break inside (byte 4 of 8)"),
    ("schl\u00fcssel".encode(), "has bytes that are not ASCII (byte 5 of 10)"),
    ("schl\u00fcssel".encode("latin-1"), "has bytes that are not ASCII (byte 5 of 9)"),
    ("token".encode("utf-16"), "has bytes that are not ASCII (byte 1 of 12)"),
    (b"a\x00b", "has a control character (byte 2 of 3)"),
    (b"a\x7fb", "has a control character (byte 2 of 3)"),
]


@pytest.mark.parametrize(("raw", "fault"), NO_TOKENS)
def test_bytes_that_are_no_token_are_told_with_the_place(raw: bytes, fault: str) -> None:
    assert (token_fault(raw) or "").startswith(fault)


@given(st.one_of(st.binary(max_size=20), st.text(max_size=20).map(str.encode)))
async def test_what_has_no_fault_is_sent_as_it_is_and_what_has_one_could_not_be(raw: bytes) -> None:
    seen: list[bytes] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(dict(request.headers.raw)[b"X-Claas-Token"])
        return httpx.Response(200, json={"data": []})

    fault = token_fault(raw)
    if fault is None:
        async with VllmClient("http://h", control_token=token_text(raw), transport=httpx.MockTransport(handler)) as c:
            await c.models()
        assert seen == [raw.strip()]
    else:
        token = raw.strip()
        assert not token or any(byte < 0x20 or byte > 0x7E for byte in token)


async def test_a_token_that_is_asked_for_is_asked_for_at_each_request() -> None:
    tokens = iter(["old", "new"])
    seen: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["x-claas-token"])
        return httpx.Response(200, json={"is_sleeping": False})

    transport = httpx.MockTransport(handler)
    async with VllmClient("http://h", control_token=lambda: next(tokens), transport=transport) as client:
        await client.is_sleeping()
        await client.is_sleeping()
    assert seen == ["old", "new"]
