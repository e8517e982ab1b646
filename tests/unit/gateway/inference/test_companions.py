"""What the gateway makes of companions: those that do not record yet, and versions that were loaded again."""

from __future__ import annotations

import aiohttp
import pytest

from claas_gateway.inference.recording.record import version_number
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
