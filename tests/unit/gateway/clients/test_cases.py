"""What existing clients rely on, asked of the whole gateway over a scripted vLLM and operator."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from pydantic import JsonValue

from tests.builders.whole_gateway import WholeGateway, fails, succeeds, whole_gateway
from tests.unit.gateway.clients.cases import (
    ASKED,
    CHAT,
    CHATS,
    FEEDBACKS,
    LORAS,
    MODEL,
    OTHERS,
    QUESTION,
    TEXT,
    Case,
    Given,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[WholeGateway]:
    """One gateway for all rows."""
    folder: Path = tmp_path_factory.mktemp("gateway")
    async with whole_gateway(folder, names={"tone": {"loraId": "acme/tone"}}, FEEDBACK_WAIT_SECONDS="5") as whole:
        whole.server.script.models = ()
        yield whole


@pytest.mark.parametrize("case", [*CHATS, *FEEDBACKS, *LORAS, *OTHERS], ids=lambda case: case.name)
async def test_clients_find_what_they_rely_on(gateway: WholeGateway, case: Case) -> None:
    await _prepare(gateway, case.given)
    body = case.raw if case.raw is not None else None if case.body is None else json.dumps(case.body)
    headers = {"Content-Type": "application/json"} if body is not None else {}
    async with gateway.http.request(case.method, gateway.url + case.path, data=body, headers=headers) as answer:
        text = await answer.text()
    assert answer.status == case.status, text
    if case.stream is not None:
        _check_stream(text, case)
        return
    for part in case.text:
        assert part in text
    document: JsonValue = json.loads(text) if "json" in answer.headers["Content-Type"] else {}
    for path, value in case.equals.items():
        assert _at(document, path) == value, path
    for path, kind in case.types.items():
        assert type(_at(document, path)) is kind, path
    for path, parts in case.contains.items():
        assert all(part in str(_at(document, path)) for part in parts), text


async def _prepare(gateway: WholeGateway, given: Given) -> None:
    script = gateway.server.script
    script.answer, script.status, script.lost_ids = given.answer, 200, int(given.loses_ids)
    gateway.ending = fails() if given.fails else succeeds()
    if given.asked:
        status, _, _ = await gateway.send("POST", CHAT, {"model": MODEL, "messages": ASKED})
        assert status == 200
    if given.completed:
        status, _, _ = await gateway.send("POST", TEXT, {"model": MODEL, "prompt": QUESTION})
        assert status == 200
    script.status = given.upstream_status


def _check_stream(text: str, case: Case) -> None:
    events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    parts = [json.loads(event) for event in events[:-1]]
    assert {part["object"] for part in parts} == {case.stream}
    choices = [choice for part in parts for choice in part["choices"]]
    texts = [choice["delta"].get("content") or "" if "delta" in choice else choice["text"] for choice in choices]
    assert "".join(texts) == case.given.answer
    assert [choice["finish_reason"] for choice in choices if choice.get("finish_reason")] == ["stop"]
    if "delta" in choices[0]:
        assert choices[0]["delta"]["role"] == "assistant"


def _at(document: JsonValue, path: str) -> JsonValue:
    for part in path.split("."):
        if isinstance(document, list):
            document = document[int(part)]
        else:
            assert isinstance(document, dict)
            assert part in document, f"{part} of {path} is missing"
            document = document[part]
    return document
