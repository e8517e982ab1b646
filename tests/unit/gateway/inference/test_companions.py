"""What the gateway makes of companions: those that do not record yet, and versions that were loaded again."""

from __future__ import annotations

import aiohttp
import pytest
from pydantic import JsonValue

from claas_gateway.inference.recording.record import version_number
from claas_gateway.inference.recording.wire import Injection
from claas_gateway.inference.routes import Inference
from claas_gateway.records import Evidence
from tests.builders.front import front, listening
from tests.simulation.openai_server import OpenAIServer, Script


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("coder@7", 7), ("team/coder@12", 12), ("coder@7-0a1b2c3d", 7), ("me@home@3", 3), ("coder", None),
        (None, None), ("coder@", None), ("coder@7-final", None), ("coder@x", None), ("coder@7\n", None),
    ],
)  # fmt: skip
def test_a_versions_name_tells_its_number(name: str | None, number: int | None) -> None:
    assert version_number(name) == number


@pytest.mark.parametrize("stream", [False, True])
async def test_ids_are_asked_for_with_the_answer_where_the_companion_does_not_record(stream: bool) -> None:
    body = {"model": "coder", "messages": [{"role": "user", "content": "hi"}], "stream": stream}
    async with (
        front(OpenAIServer(Script(records=False))) as made,
        listening(Inference(made.services)) as url,
        aiohttp.ClientSession() as http,
    ):
        async with http.post(f"{url}/v1/chat/completions", json=body) as answer:
            assert answer.status == 200
            assert '"token_ids":[' not in await answer.text()
        [rollout] = made.store.kept
    assert rollout.evidence is Evidence.WIRE
    assert rollout.trainable


@pytest.mark.parametrize(
    ("delta", "extra", "kept"),
    [
        ("{}", '"logprobs":null,"token_ids":[5]', False),
        ("{}", '"logprobs":{"content":[]},"token_ids":[5]', True),
        ('{"content":"a"}', '"logprobs":null,"token_ids":[5]', True),
        ("{}", '"finish_reason":"stop","token_ids":[5]', True),
    ],
)
def test_of_the_chunks_without_text_a_client_gets_those_that_carry_what_it_asked_for(
    delta: str, extra: str, kept: bool
) -> None:
    event = f'data: {{"choices":[{{"index":0,"delta":{delta},{extra}}}]}}\n\n'.encode()
    stripped = Injection(ids=True, logprobs=False, usage=False).strip_events(event)
    assert stripped == (event.replace(b"[5]", b"null") if kept else b"")


@pytest.mark.parametrize(("body", "asks"), [({}, True), ({"echo": True}, False)])
async def test_an_echo_is_not_asked_for_ids_which_would_take_its_place(
    body: dict[str, JsonValue], asks: bool
) -> None:
    server = OpenAIServer(Script(companion=False))
    async with (
        front(server) as made,
        listening(Inference(made.services)) as url,
        aiohttp.ClientSession() as http,
        http.post(f"{url}/v1/completions", json={"model": "coder", "prompt": "hi", **body}) as answer,
    ):
        assert answer.status == 200
    assert ("return_token_ids" in server.asked[-1][1]) is asks
