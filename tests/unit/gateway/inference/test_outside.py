"""That requests reach a vLLM on Modal with what its front asks for, wait while a container starts, and that clients
are told what is wrong but nothing that is not theirs."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import pytest

from claas_gateway.inference.routes import Inference
from claas_gateway.inference.supervision import Pace
from claas_gateway.records import Evidence
from claas_gateway.upstream import pods
from tests.builders.front import NAMESPACE, TOKEN, listening
from tests.builders.modal.front import BY_MODAL, modal_front, place_tokens
from tests.builders.modal.server import PROXY_KEY, PROXY_SECRET, ModalServer
from tests.cluster.services.certificates import make_authority, make_certificate
from tests.simulation.openai_server import Script
from tests.unit.gateway.inference.asking import ANSWER, MESSAGES, Asking, said

TICKS = Pace(tick_seconds=0.01, silent_seconds=0.05, hold_seconds=0.05)
"""Also: what is paused in the cluster would be given up long before."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pods, "AGAIN_SECONDS", 0.02)
    monkeypatch.setattr(pods, "LONGEST_PAUSE_SECONDS", 0.1)


@asynccontextmanager
async def asking(server: ModalServer, *, url: str | None = None, cold_start: float = 10) -> AsyncIterator[Asking]:
    async with (
        modal_front(server, url=url, COLD_START_SECONDS=str(cold_start)) as made,
        listening(Inference(made.services, TICKS)) as at,
        aiohttp.ClientSession() as http,
    ):
        yield Asking(made, http, at)


@pytest.mark.parametrize("stream", [False, True])
async def test_one_request_with_both_tokens_brings_the_answer_and_its_record(stream: bool) -> None:
    server = ModalServer()
    async with asking(server) as client:
        status, body, headers = await client.chat(stream=stream)
        assert status == 200
        assert (said(body) if stream else json.loads(body)["choices"][0]["message"]["content"]) == ANSWER
        assert headers["x-claas-version"] == "coder@7"
        assert server.came == ["/v1/chat/completions"], "nothing was asked before"
        (sent,) = server.headers
        assert (sent["modal-key"], sent["modal-secret"]) == (PROXY_KEY, PROXY_SECRET)
        assert sent["x-claas-token"] == TOKEN
        (rollout,) = client.front.store.kept
        assert (rollout.evidence, rollout.version, rollout.trainable) == (Evidence.EXACT, 7, True)


async def test_a_server_that_does_not_record_is_asked_for_the_ids_from_then_on() -> None:
    server = ModalServer(Script(records=False))
    async with asking(server) as client:
        for _ in range(2):
            assert (await client.chat())[0] == 200
        first, second = client.front.store.kept
        assert (first.incomplete, second.evidence, second.version) == ("NoRecord", Evidence.WIRE, 7)
        assert server.came == ["/v1/chat/completions"] * 2


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_waits_until_a_container_is_there(stream: bool) -> None:
    server = ModalServer(cold=6)
    async with asking(server) as client:
        status, body, _ = await client.chat(stream=stream)
        assert status == 200
        assert (said(body) if stream else json.loads(body)["choices"][0]["message"]["content"]) == ANSWER
        assert len(server.came) == 7
        assert body.count(": keep-alive\n\n") >= (1 if stream else 0)
        assert [each.trainable for each in client.front.store.kept] == [True]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_container_that_does_not_come_is_given_up_and_asked_for_more_and_more_slowly(
    stream: bool,
) -> None:
    server = ModalServer(cold=1000)
    async with asking(server, cold_start=0.6) as client:
        status, body, headers = await client.chat(stream=stream)
        assert "servers on Modal" in body
        assert "may be starting" in body
        if stream:
            assert (status, body.endswith("data: [DONE]\n\n")) == (200, True)
        else:
            assert (status, int(headers["retry-after"]) > 0) == (503, True)
        assert 3 < len(server.came) < 12
        assert client.front.store.kept == []


async def test_a_stream_that_the_front_holds_up_is_kept_alive() -> None:
    server = ModalServer(holds=True)
    async with asking(server) as client:
        asked = asyncio.create_task(client.chat(stream=True))
        await asyncio.sleep(0.3)
        server.started.set()
        status, stream, _ = await asked
        assert status == 200
        assert stream.count(": keep-alive\n\n") >= 2
        assert said(stream) == ANSWER
        assert len(server.came) == 1


async def test_a_request_that_the_front_holds_up_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("claas_gateway.upstream.servers.TIMEOUT", aiohttp.ClientTimeout(total=None, sock_read=0.2))
    async with asking(ModalServer(holds=True), cold_start=0.1) as client:
        status, body, _ = await client.chat()
        assert status == 503
        assert "may be starting" in body


async def test_a_client_that_leaves_ends_the_work_of_the_server() -> None:
    server = ModalServer(Script(pauses_after=5))
    async with asking(server) as client:
        body = {"model": "coder", "messages": MESSAGES, "stream": True}
        with suppress(TimeoutError):
            async with asyncio.timeout(0.3), client.http.post(f"{client.url}/v1/chat/completions", json=body) as got:
                await got.read()
        await client.front.small.until(lambda: server.aborted == 1 and bool(client.front.store.kept))
        assert client.front.store.kept[0].incomplete == "ClientDisconnected"


async def test_a_client_that_leaves_while_it_waits_asks_no_more() -> None:
    server = ModalServer(cold=1000)
    async with asking(server) as client:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await client.chat()
        await asyncio.sleep(0.1)
        came = len(server.came)
        await asyncio.sleep(0.3)
        assert len(server.came) == came > 1


async def test_a_changed_proxy_token_is_read_at_once() -> None:
    server = ModalServer()
    async with asking(server) as client:
        assert (await client.chat())[0] == 200
        server.secret = "ws-changed"
        place_tokens(client.front.small, secret="ws-changed")
        assert (await client.chat())[0] == 200


async def test_a_proxy_token_that_is_refused_is_told_as_such_and_never_shown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    server = ModalServer(secret="another")
    async with asking(server) as client:
        status, body, _ = await client.chat()
        assert (status, len(server.came)) == (503, 2)
        assert "proxyTokenSecretRef" in body
    assert "modal:claas-vllm did not answer: HTTP 401" in caplog.text
    for secret in (PROXY_KEY, PROXY_SECRET, TOKEN, "modal-http"):
        assert secret not in caplog.text + body


async def test_without_a_proxy_token_nothing_is_sent() -> None:
    server = ModalServer()
    async with asking(server) as client:
        place_tokens(client.front.small, secret="two\nlines")
        status, body, _ = await client.chat()
        assert status == 503
        assert "proxyTokenSecretRef" in body
        assert server.came == []


@pytest.mark.parametrize("status", [303, 404, 413, 429, 500])
async def test_what_the_front_answers_itself_is_logged_and_not_passed_on(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    server = ModalServer(refuses=status)
    async with asking(server) as client:
        answered, body, headers = await client.chat()
        assert (answered, len(server.came)) == (503, 1)
        assert f"HTTP {status}" in body
        assert "workspace-x" not in body + caplog.text
        assert f"modal:claas-vllm: Modal itself answers HTTP {status}" in caplog.text
        assert int(headers["retry-after"]) > 0


async def test_what_vllm_refuses_is_passed_on() -> None:
    async with asking(ModalServer(Script(status=400))) as client:
        status, body, _ = await client.chat()
        assert (status, json.loads(body)["error"]["message"]) == (400, "maximum context length is 2048 tokens")


async def test_a_container_that_has_not_loaded_the_adapter_yet_is_asked_again() -> None:
    server = ModalServer(Script(models=["base"]))
    async with asking(server) as client:
        asked = asyncio.create_task(client.chat())
        await client.front.small.until(lambda: len(server.came) == 3)
        server.script.models = ["base", "coder"]
        assert (await asked)[0] == 200
        server.script.models = ["base"]
        server.came.clear()
        assert (await client.chat())[0] == 404, "after a while its word is taken for it"
        assert len(server.came) < 10


async def test_an_address_that_nobody_listens_at_is_given_up() -> None:
    async with asking(ModalServer(), url="http://127.0.0.1:1", cold_start=0.3) as client:
        status, body, _ = await client.chat()
        assert status == 503
        assert "127.0.0.1" not in body


@pytest.mark.parametrize("public", [True, False])
async def test_nothing_is_sent_to_a_server_without_a_certificate_of_a_public_authority(
    public: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = make_authority(tmp_path)
    pair = make_certificate(authority, tmp_path, "vllm", common_name="vllm", hosts=["127.0.0.1"])
    server = ModalServer(tls=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    assert server.tls is not None
    server.tls.load_cert_chain(pair.certificate, pair.key)
    if public:
        trusting = ssl.create_default_context(cafile=str(authority.path))
        monkeypatch.setattr("aiohttp.connector._SSL_CONTEXT_VERIFIED", trusting)
    async with asking(server, cold_start=0.2) as client:
        assert client.front.services.directory.resolve("coder", NAMESPACE).servers.outside
        status, _, _ = await client.chat()
        assert (status, server.came) == ((200, ["/v1/chat/completions"]) if public else (503, []))


async def test_a_score_comes_through_the_front_as_well() -> None:
    server = ModalServer(cold=2)
    async with asking(server) as client:
        status, body, _ = await client.post("/v1/score", model="coder", messages=MESSAGES, completion="Paris")
        assert status == 200
        assert json.loads(body)["completion_tokens"] == 5
        assert all(sent["modal-key"] == PROXY_KEY for sent in server.headers)


async def test_the_base_model_is_asked_of_the_app_and_found_in_the_list() -> None:
    server = ModalServer()
    async with asking(server) as client:
        async with client.http.get(f"{client.url}/v1/models") as answer:
            listed = [card["id"] for card in (await answer.json())["data"]]
        assert listed == ["base", "coder"]
        assert server.came == []
        assert (await client.chat("base"))[0] == 200
        assert client.front.store.kept[0].adapter is None


async def test_without_log_probabilities_wished_for_none_are_recorded() -> None:
    """As with a vLLM in the cluster: the trainer computes those that it needs."""
    server = ModalServer()
    async with asking(server) as client:
        assert client.front.services.directory.resolve("coder", NAMESPACE).servers.outside
        await client.chat()
        assert server.headers[0]["x-claas-record"] == "ids"
        assert "rollouts" not in BY_MODAL
