"""Prompts asked again of the version that learned from feedback on their answers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

import pytest
from pydantic import JsonValue

from claas_kube.objects.meta import Manifest
from claas_kube.resources import LEASES
from tests.builders.front import NAMESPACE
from tests.builders.whole_gateway import WholeGateway, succeeds, whole_gateway

ASKED: list[JsonValue] = [{"role": "user", "content": "Why?"}]
CHAT: dict[str, JsonValue] = {"model": "coder", "messages": ASKED, "temperature": 1.5, "n": 1, "seed": 3}


async def _learn(whole: WholeGateway) -> str:
    """Chat, feed back, and learn; the item."""
    whole.server.script.answer = "Because it is so."
    _, _, headers = await whole.send("POST", "/v1/chat/completions", CHAT)
    whole.server.script.answer = "It is."
    item: JsonValue = {"lora_id": "coder", "rollout_id": headers["X-Claas-Rollout"], "feedback": "Shorter."}
    status, told, _ = await whole.send("POST", "/v1/feedback", {"requests": [item, item]})
    assert status == 200
    return cast("list[dict[str, str]]", told["items"])[0]["id"]


async def _answered_after(whole: WholeGateway, item_id: str) -> str:
    async with asyncio.timeout(5):
        while True:
            item = await whole.store.feedback.item(item_id)
            if item is not None and item.answer_after is not None:
                return item.answer_after
            await asyncio.sleep(0.01)


async def test_the_version_that_learned_is_asked_again_without_chance(tmp_path: Path) -> None:
    async with whole_gateway(tmp_path) as whole:
        whole.ending = succeeds(7)  # The scripted server says that version 7 answers.
        item_id = await _learn(whole)
        assert await _answered_after(whole, item_id) == "It is."
        path, body = whole.server.asked[-1]
        assert path == "/v1/chat/completions"
        assert (body["temperature"], body["messages"]) == (0, ASKED)
        assert "seed" not in body
        # Two items on one answer have one prompt between them.
        chats = [path for path, _ in whole.server.asked if path == "/v1/chat/completions"]
        assert len(chats) == 2


@pytest.mark.parametrize("replays", ["0", "4"])
async def test_another_version_s_answer_is_not_taken_for_this_one_s(tmp_path: Path, replays: str) -> None:
    async with whole_gateway(tmp_path, REPLAYS_PER_BATCH=replays) as whole:
        whole.ending = succeeds(8)
        item_id = await _learn(whole)
        await asyncio.sleep(0.2)
        item = await whole.store.feedback.item(item_id)
        assert item is not None
        assert item.answer_after is None
        asked = [path for path, _ in whole.server.asked if path == "/v1/chat/completions"]
        assert len(asked) == (1 if replays == "0" else 2)


async def test_a_step_s_grant_that_outlives_the_step_keeps_nobody_from_asking_again(tmp_path: Path) -> None:
    async with whole_gateway(tmp_path) as whole:
        whole.ending = succeeds(7)
        grant: Manifest = {
            "metadata": {
                "name": "claas-serving-vllm",
                "labels": {"claas.dev/lease": "serving", "app.kubernetes.io/managed-by": "claas-operator"},
                "annotations": {
                    "claas.dev/deployment": "vllm",
                    "claas.dev/grant": '{"pods":[{"name":"vllm-0","uid":"uid-of-vllm-0","url":"http://x"}],'
                    '"handover":"Sleep"}',
                },
            },
            "spec": {"holderIdentity": "a-job"},
        }
        whole.small.put(LEASES, NAMESPACE, grant)
        directory = whole.services.directory
        (coder,) = (each for each in directory.adapters(None) if each.name == "coder")
        await whole.small.until(lambda: all(each.may_sleep for each in directory.servers(coder.servers)))
        assert await _answered_after(whole, await _learn(whole)) == "It is."
