"""That answers are stored before their last bytes, by whichever way their tokens are known, and reach the client even
when they can't be."""

from __future__ import annotations

import asyncio
import json

import pytest

from claas_gateway.records import Evidence
from tests.simulation.openai_server import LOGPROB, PROMPT_IDS, OpenAIServer, Script
from tests.unit.gateway.inference.asking import ANSWER, MESSAGES, asking

IDS = tuple(map(ord, ANSWER))


@pytest.mark.parametrize("stream", [False, True])
async def test_the_last_bytes_wait_for_the_store(stream: bool) -> None:
    async with asking(OpenAIServer()) as client:
        store = client.front.store
        store.waits = asyncio.Event()
        body = {"model": "coder", "messages": MESSAGES, "stream": stream}
        asked = asyncio.create_task(client.chat(stream=stream))
        await asyncio.sleep(0.2)
        assert not asked.done()
        store.waits.set()
        status, text, headers = await asked
        assert (status, "x-claas-rollout" in headers) == (200, True)
        assert store.kept
        assert body
        assert text.endswith("data: [DONE]\n\n") or json.loads(text)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_can_not_be_stored_is_given_all_the_same_and_counted(
    stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with asking(OpenAIServer()) as client:
        client.front.store.fails = True
        status, text, headers = await client.chat(stream=stream)
        assert status == 200
        assert text.endswith("data: [DONE]\n\n") if stream else ANSWER in text
        assert ("x-claas-rollout" in headers) is stream, "a stream's headers have gone by then"
        lost = client.front.services.metrics.registry.get_sample_value("claas_gateway_lost_rollouts_total")
        assert lost == 1
        assert "could not be stored" in caplog.text
        assert ANSWER not in caplog.text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("chat", [True, False])
async def test_a_server_without_the_companion_is_asked_for_the_ids_and_the_client_does_not_notice(
    stream: bool, chat: bool
) -> None:
    server = OpenAIServer(Script(companion=False, version=None))
    async with asking(server, adapter_spec={"rollouts": {"logprobs": True}}) as client:
        path = "/v1/chat/completions" if chat else "/v1/completions"
        body = {"model": "coder", "stream": stream, **({"messages": MESSAGES} if chat else {"prompt": "hi"})}
        async with client.http.post(server.url + path, json=body) as direct:
            wanted = await direct.text()
        status, text, _ = await client.post(path, **body)
        assert (status, text) == (200, wanted)
        [rollout] = client.front.store.kept
        assert rollout.evidence is Evidence.WIRE
        assert (rollout.prompt_token_ids, rollout.response_token_ids) == (tuple(PROMPT_IDS), IDS)
        assert rollout.response_logprobs == (LOGPROB,) * len(IDS)
        assert rollout.trainable
        assert rollout.version is None


@pytest.mark.parametrize("secret", [None, "another"])
async def test_without_a_control_token_nothing_is_recorded_inside(secret: str | None) -> None:
    server = OpenAIServer()
    async with asking(server, control_secret=secret) as client:
        assert (await client.chat())[0] == 200
        assert client.front.store.kept[0].evidence is Evidence.WIRE
        assert "x-claas-token" not in server.headers[-1]


async def test_log_probabilities_are_recorded_where_the_adapter_asks_for_them() -> None:
    async with asking(OpenAIServer(), adapter_spec={"rollouts": {"logprobs": True}}) as client:
        await client.chat()
        assert client.front.store.kept[0].response_logprobs == (LOGPROB,) * len(IDS)


async def test_a_record_that_lacks_ids_makes_an_incomplete_rollout() -> None:
    async with asking(OpenAIServer(Script(lost_ids=1))) as client:
        await client.chat()
        assert client.front.store.kept[0].incomplete == "CountsDiffer"


async def test_a_clients_own_control_headers_never_reach_the_server() -> None:
    server = OpenAIServer()
    async with asking(server) as client:
        forged = {"X-Claas-Token": "guessed", "X-Claas-Record": "ids, logprobs", "Authorization": "Bearer mine"}
        body = {"model": "coder", "messages": MESSAGES}
        async with client.http.post(f"{client.url}/v1/chat/completions", json=body, headers=forged) as response:
            assert "claas-record" not in await response.text()
        assert server.headers[-1]["x-claas-token"] == "the-control-token"
        assert server.headers[-1]["x-claas-record"] == "ids"
        assert "authorization" not in server.headers[-1]


@pytest.mark.parametrize("stream", [False, True])
async def test_thinking_is_hidden_and_the_rollout_has_all_tokens(stream: bool) -> None:
    answer = "<think>secret</think>\n\nHello"
    async with asking(OpenAIServer(Script(answer=answer))) as client:
        _, text, _ = await client.chat(stream=stream)
        assert "secret" not in "".join(part for part in text.split('"content":"'))
        [rollout] = client.front.store.kept
        assert rollout.answer == "Hello"
        assert rollout.response_token_ids == tuple(map(ord, answer))


async def test_a_score_tells_the_log_probability_of_each_token() -> None:
    async with asking(OpenAIServer()) as client:
        status, text, _ = await client.post("/v1/score", model="coder", messages=MESSAGES, completion="Hello there")
        score = json.loads(text)
        assert status == 200
        assert len(score["logprobs"]) == len(score["tokens"]) == score["completion_tokens"] == 11
        assert "".join(score["tokens"]) == "Hello there"
        assert score["logprob_sum"] == pytest.approx(sum(score["logprobs"]))
        assert score["prompt_tokens"] == len("<system>Be kind.<user>hi<assistant>")
        assert client.front.store.kept == []


@pytest.mark.parametrize(
    "body", [{}, {"messages": []}, {"messages": MESSAGES}, {"messages": MESSAGES, "completion": ""}]
)
async def test_a_score_of_nothing_is_refused(body: dict[str, object]) -> None:
    async with asking(OpenAIServer()) as client:
        status, text, _ = await client.post("/v1/score", **{"model": "coder", **body})  # type: ignore[arg-type]
        assert status == 422
        assert isinstance(json.loads(text)["detail"], list)
