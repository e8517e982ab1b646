"""That requests wait for servers that are paused or not ready, and go to another where that helps."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress

import aiohttp
import pytest

from claas_gateway.inference.routes import Inference
from claas_gateway.inference.supervision import Pace
from tests.builders.front import front, running
from tests.simulation.openai_server import OpenAIServer, Script
from tests.unit.gateway.inference.asking import ANSWER, MESSAGES, QUICK, asking, said

PATIENT = Pace(tick_seconds=0.01, silent_seconds=0.05, hold_seconds=10)


async def test_a_stream_waits_for_the_only_server_with_comments_and_then_gets_its_answer() -> None:
    server = OpenAIServer()
    async with asking(server, pace=PATIENT) as client:
        await client.front.grant("vllm-0")
        server.awake.clear()
        asked = asyncio.create_task(client.chat(stream=True))
        await asyncio.sleep(0.3)
        server.awake.set()
        status, stream, _ = await asked
        assert status == 200
        assert stream.count(": keep-alive\n\n") >= 2
        assert said(stream) == ANSWER
        assert stream.endswith("data: [DONE]\n\n")
        assert client.front.store.kept[0].trainable


async def test_a_stream_that_waited_too_long_ends_with_an_error_event() -> None:
    server = OpenAIServer()
    async with asking(server, pace=QUICK) as client:
        await client.front.grant("vllm-0")
        server.awake.clear()
        status, stream, _ = await client.chat(stream=True)
        assert status == 200
        assert '"error"' in stream
        assert stream.endswith("data: [DONE]\n\n")
        assert client.front.store.kept == []
        await client.front.small.until(lambda: server.running == 0)


async def test_an_answer_that_waited_too_long_is_503_and_says_when_to_try_again() -> None:
    server = OpenAIServer()
    async with asking(server, pace=QUICK) as client:
        await client.front.grant("vllm-0")
        server.awake.clear()
        status, body, headers = await client.chat()
        assert status == 503
        assert int(headers["retry-after"]) > 0
        assert json.loads(body)["error"]["type"] == "server_error"


async def test_a_slow_answer_of_a_server_that_is_awake_is_waited_for_though_a_step_may_pause_it() -> None:
    server = OpenAIServer()
    async with asking(server, pace=QUICK) as client:
        await client.front.grant("vllm-0")
        server.thinks.clear()
        asked = asyncio.create_task(client.chat())
        await asyncio.sleep(3 * QUICK.hold_seconds)
        assert not asked.done()
        server.thinks.set()
        assert (await asked)[0] == 200


async def test_a_pause_in_the_midst_of_a_stream_is_bridged_however_long_it_is() -> None:
    server = OpenAIServer(Script(pauses_after=5))
    async with asking(server, pace=QUICK) as client:
        await client.front.grant("vllm-0")
        asked = asyncio.create_task(client.chat(stream=True))
        await asyncio.sleep(3 * QUICK.hold_seconds)
        server.awake.set()
        status, stream, _ = await asked
        assert status == 200
        assert said(stream) == ANSWER
        assert all(event.startswith(("data: ", ": keep-alive")) for event in stream.split("\n\n") if event)


async def test_nobody_waits_for_a_server_that_may_sleep_while_another_does_not() -> None:
    sleeping, awake = OpenAIServer(), OpenAIServer()
    async with asking(sleeping, awake) as client:
        await client.front.grant("vllm-0")
        sleeping.awake.clear()
        for _ in range(3):
            assert (await client.chat())[0] == 200
        assert len([path for path, _ in awake.asked if "chat" in path]) == 3
        assert [path for path, _ in sleeping.asked if "chat" in path] == []


async def test_a_request_waits_until_a_server_is_ready() -> None:
    server = OpenAIServer()
    async with asking(server, pace=PATIENT) as client:
        client.front.pod("vllm-0", server, ready=False)
        await client.front.until_ready(0)
        asked = asyncio.create_task(client.chat())
        await asyncio.sleep(0.05)
        assert not asked.done()
        client.front.pod("vllm-0", server)
        assert (await asked)[0] == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_another_server_is_asked_when_one_dies_before_it_answered(stream: bool) -> None:
    dying, sound = OpenAIServer(Script(dies_after=0)), OpenAIServer()
    async with asking(dying, sound) as client:
        status, body, _ = await client.chat(stream=stream)
        assert status == 200
        assert (said(body) if stream else json.loads(body)["choices"][0]["message"]["content"]) == ANSWER
        assert [each.incomplete for each in client.front.store.kept] == [None]


async def test_another_server_is_asked_when_one_has_not_loaded_the_adapter_yet() -> None:
    fresh, loaded = OpenAIServer(Script(models=["base"])), OpenAIServer()
    async with asking(fresh, loaded) as client:
        assert (await client.chat())[0] == 200
        status, body, _ = await client.chat("base")
        assert status == 200
        assert json.loads(body)["model"] == "base"


async def test_a_server_that_dies_in_the_midst_leaves_an_incomplete_rollout_and_an_error() -> None:
    async with asking(OpenAIServer(Script(dies_after=8))) as client:
        status, stream, _ = await client.chat(stream=True)
        assert status == 200
        assert said(stream) == ANSWER[:7]
        assert '"error"' in stream
        [rollout] = client.front.store.kept
        assert rollout.incomplete == "ServerLost"
        assert rollout.answer == ANSWER[:7]
        assert not rollout.trainable


async def test_a_client_that_leaves_ends_the_servers_work_and_leaves_an_incomplete_rollout() -> None:
    server = OpenAIServer(Script(pauses_after=5))
    async with asking(server) as client:
        with suppress(TimeoutError):
            async with (
                asyncio.timeout(0.3),
                client.http.post(
                    f"{client.url}/v1/chat/completions", json={"model": "coder", "messages": MESSAGES, "stream": True}
                ) as response,
            ):
                await response.read()
        await client.front.small.until(lambda: server.aborted == 1 and bool(client.front.store.kept))
        [rollout] = client.front.store.kept
        assert rollout.incomplete == "ClientDisconnected"
        assert rollout.answer == ANSWER[:4]


async def test_a_slow_client_slows_the_server_down() -> None:
    server = OpenAIServer(Script(pieces=["x" * 20_000] * 2_000))
    async with asking(server) as client:
        body = {"model": "coder", "messages": MESSAGES, "stream": True}
        async with client.http.post(f"{client.url}/v1/chat/completions", json=body) as response:
            await response.content.read(1)
            await asyncio.sleep(0.5)
            assert server.written < 1_500
            response.close()


async def test_a_stream_that_began_ends_though_the_gateway_is_told_to_stop() -> None:
    server = OpenAIServer(Script(pauses_after=5))
    async with front(server) as made, aiohttp.ClientSession() as http:
        async with running(Inference(made.services)) as (gateway, url):
            body = {"model": "coder", "messages": MESSAGES, "stream": True}
            async with http.post(f"{url}/v1/chat/completions", json=body) as response:
                begun = await response.content.readuntil(b"\n\n")
                gateway.should_exit = True
                await asyncio.sleep(0.2)
                server.awake.set()
                assert said((begun + await response.read()).decode()) == ANSWER
        assert [each.incomplete for each in made.store.kept] == [None]


async def test_servers_that_can_not_be_reached_are_given_up_in_time() -> None:
    async with asking(OpenAIServer(Script(dies_after=0)), pace=QUICK) as client:
        status, body, headers = await client.chat()
        assert status == 503
        assert int(headers["retry-after"]) > 0
        assert "do not answer" in body or "not ready" in body
