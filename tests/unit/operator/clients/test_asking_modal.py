"""Which version answers behind a front like Modal's: what each answer means, and how often a container is asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from claas_operator.clients.modal.asking import ask_version
from claas_operator.clients.modal.service import ModalError
from claas_operator.plan.modal.state import ModalTrouble
from tests.builders.modal.world import on_volume, pointer

TO_ONE = pointer(on_volume(1))
KEY, SECRET = "wk-of-the-test", "ws-private"
CHOICE = {"text": "!", "token_ids": [7], "logprobs": {"token_logprobs": [-0.5], "top_logprobs": [{"a": -0.5}]}}


@asynccontextmanager
async def front(status: int, version: str | None = None) -> AsyncIterator[tuple[str, list[str]]]:
    """A server that answers every completion in one way; its address, and what it was asked."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        body = await request.json()
        assert (request.headers["Modal-Key"], request.headers["Modal-Secret"]) == (KEY, SECRET)
        assert body["max_tokens"] == 1
        asked.append(body["model"])
        headers = {} if version is None else {"x-claas-version": version}
        if status != 200:
            return web.json_response({"error": {"message": "not now"}}, status=status, headers=headers)
        found = {"model": body["model"], "choices": [CHOICE]}
        return web.json_response(found, headers=headers)

    app = web.Application()
    app.router.add_post("/v1/completions", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", asked
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("version", ["tone@1", "tone@1-0a1b2c3d"])
async def test_a_version_is_known_by_the_name_that_it_is_loaded_under(version: str) -> None:
    async with front(200, version) as (url, asked):
        await ask_version(url, TO_ONE, KEY, SECRET)
        assert asked == ["tone"]


@pytest.mark.parametrize(
    ("status", "version", "trouble", "says"),
    [
        (200, "tone@0", ModalTrouble.NOT_YET, "tone@0 answers"),
        (200, "tone@11", ModalTrouble.NOT_YET, "tone@11 answers"),
        (200, "tone@10-0a1b2c3d", ModalTrouble.NOT_YET, "answers"),
        # Without the companion nobody knows.
        (200, None, ModalTrouble.NOT_YET, "tone answers"),
        (404, None, ModalTrouble.NOT_YET, "is not known there yet"),
        (503, None, ModalTrouble.NOT_YET, "no container answers yet (HTTP 503)"),
        (502, None, ModalTrouble.NOT_YET, "no container answers yet (HTTP 502)"),
        (429, None, ModalTrouble.NOT_YET, "no container answers yet (HTTP 429)"),
        (401, None, ModalTrouble.CREDENTIALS_REFUSED, "spec.serving.modalApp.proxyTokenSecretRef"),
        (403, None, ModalTrouble.CREDENTIALS_REFUSED, "spec.serving.modalApp.proxyTokenSecretRef"),
        (500, None, ModalTrouble.SERVER_UNREACHABLE, "HTTP 500"),
        (303, None, ModalTrouble.SERVER_UNREACHABLE, "no readable"),
    ],
)
async def test_each_answer_has_its_meaning_and_is_asked_for_once(
    status: int, version: str | None, trouble: ModalTrouble, says: str
) -> None:
    async with front(status, version) as (url, asked):
        with pytest.raises(ModalError) as raised:
            await ask_version(url, TO_ONE, KEY, SECRET)
        assert raised.value.trouble is trouble
        assert says in str(raised.value)
        assert SECRET not in str(raised.value)
        assert asked == ["tone"]


async def test_a_server_that_is_nowhere_is_told() -> None:
    with pytest.raises(ModalError) as raised:
        await ask_version("http://127.0.0.1:9", TO_ONE, KEY, SECRET)
    assert raised.value.trouble is ModalTrouble.SERVER_UNREACHABLE
