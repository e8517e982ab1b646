"""That requests reach a server and answers come back as they were, and are recorded."""

from __future__ import annotations

import json

import pytest
from pydantic import JsonValue

from claas_gateway.records import Evidence
from tests.simulation.openai_server import PROMPT_IDS, OpenAIServer, Script
from tests.unit.gateway.inference.asking import ANSWER, MESSAGES, asking


async def test_an_answer_comes_back_and_is_recorded_as_the_server_recorded_it() -> None:
    server = OpenAIServer()
    async with asking(server) as client:
        status, body, headers = await client.chat(temperature=0.5, user="u1", unknown={"kept": 1.5})
        assert status == 200
        assert json.loads(body)["choices"][0]["message"]["content"] == ANSWER
        assert "claas" not in body
        [rollout] = client.front.store.kept
        assert headers["x-claas-rollout"] == rollout.id
        assert (rollout.adapter, rollout.version, rollout.user) == ("coder", 7, "u1")
        assert (rollout.user_prompt, rollout.system_prompt, rollout.answer) == ("hi", "Be kind.", ANSWER)
        assert rollout.evidence is Evidence.EXACT
        assert rollout.prompt_token_ids == tuple(PROMPT_IDS)
        assert rollout.response_token_ids == tuple(map(ord, ANSWER))
        assert rollout.trainable
        assert server.asked[-1][1]["unknown"] == {"kept": 1.5}


async def test_a_stream_comes_back_byte_for_byte_without_the_record() -> None:
    server = OpenAIServer()
    async with asking(server) as client:
        body = {"model": "coder", "messages": MESSAGES, "stream": True}
        async with client.http.post(f"{server.url}/v1/chat/completions", json=body) as direct:
            wanted = await direct.text()
        status, stream, headers = await client.chat(stream=True)
        assert (status, stream) == (200, wanted)
        assert headers["content-type"].startswith("text/event-stream")
        [rollout] = client.front.store.kept
        assert headers["x-claas-rollout"] == rollout.id
        assert rollout.response_token_ids == tuple(map(ord, ANSWER))
        assert rollout.answer == ANSWER


@pytest.mark.parametrize("stream", [False, True])
async def test_the_model_is_called_as_it_was_asked_for(stream: bool) -> None:
    async with asking(OpenAIServer()) as client:
        status, body, _ = await client.chat("team-coder-init", stream=stream)
        assert status == 200
        assert '"model":"team-coder-init"' in body
        assert '"model":"coder"' not in body


TOOL: JsonValue = {"type": "function", "function": {"name": "look", "parameters": {}}}
USAGE: JsonValue = {"include_usage": True}


@pytest.mark.parametrize(
    ("asked", "left_out"),
    [
        ({"tools": []}, {"tools"}),
        ({"tools": [], "tool_choice": "auto"}, {"tools", "tool_choice"}),
        ({"tools": [], "tool_choice": "none"}, {"tools"}),
        ({"tools": [TOOL], "tool_choice": "auto"}, set()),
        ({"stream_options": USAGE, "stream": False}, {"stream_options"}),
        ({"stream_options": USAGE, "stream": None}, {"stream_options"}),
        ({"stream_options": USAGE, "stream": True}, set()),
        ({"stream_options": USAGE, "stream": "true"}, set()),
    ],
)
@pytest.mark.parametrize("model", ["coder", "team-coder-init"])
async def test_fields_that_ask_for_nothing_are_left_out_and_no_others(
    model: str, asked: dict[str, JsonValue], left_out: set[str]
) -> None:
    server = OpenAIServer()
    async with asking(server) as client:
        status, text, _ = await client.chat(model, **asked)
        assert status == 200, text
        (path, sent) = server.asked[-1]
        assert path == "/v1/chat/completions"
        kept = {name: value for name, value in asked.items() if name not in left_out}
        assert sent == {"model": "coder", "messages": MESSAGES, **kept}


async def test_a_request_without_a_model_goes_to_the_only_base_model() -> None:
    async with asking(OpenAIServer()) as client:
        status, body, _ = await client.chat(None)
        assert status == 200
        assert json.loads(body)["model"] == "base"
        assert client.front.store.kept[0].adapter is None


async def test_a_servers_refusal_keeps_its_status_and_text() -> None:
    async with asking(OpenAIServer(Script(status=400))) as client:
        status, body, _ = await client.chat()
        assert status == 400
        assert "maximum context length" in body
        assert client.front.store.kept == []


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/chat/completions", b"{not json", 422),
        ("/v1/chat/completions", b"[]", 422),
        ("/v1/chat/completions", b'{"model": "coder"}', 422),
        ("/v1/completions", b'{"model": "coder"}', 422),
        ("/v1/completions", b'{"model": 7, "prompt": "x"}', 422),
        ("/v1/completions", b'{"model": "unknown", "prompt": "x"}', 404),
        ("/v1/completions", b" " * 2000, 413),
    ],
)
async def test_what_can_not_be_asked_is_refused_in_both_shapes(path: str, body: bytes, status: int) -> None:
    async with (
        asking(OpenAIServer(), LARGEST_BODY_BYTES="1000") as client,
        client.http.post(client.url + path, data=body) as response,
    ):
        said = await response.json()
        assert response.status == status
        assert said["error"]["message"]
        assert isinstance(said["detail"], list if status == 422 else str)
