"""The gateway before the real vLLM with the real companion: its answers are the server's, and what was sampled is
recorded."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from pydantic import JsonValue
from transformers import AutoTokenizer

from claas_gateway.inference.routes import Inference
from claas_gateway.records import Evidence
from claas_kube.objects.meta import Manifest
from claas_kube.resources import SECRETS
from claas_vllm_client import ProbeSpec, VllmClient, put_in_service, take_out_of_service
from tests.builders.api_server import SmallApi
from tests.builders.front import NAMESPACE, Front, front_of, listening, place
from tests.contract.site import API_KEY, TOKEN, Site
from tests.contract.vllm_server import BASE_MODEL

pytestmark = pytest.mark.contract

NAME = "team/fronted"
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What colour is it?"}]
GREEDY: dict[str, Any] = {"max_tokens": 12, "temperature": 0.0}


def _secret(name: str, token: str) -> Manifest:
    return {"metadata": {"name": name}, "data": {"token": base64.b64encode(token.encode()).decode()}}


TRIES = 10


@pytest.fixture
async def front(site: Site) -> AsyncIterator[tuple[Front, str]]:
    """A gateway, and its URL; version 3 is in service as an adapter whose served name has a slash."""
    small = SmallApi()
    serving: JsonValue = {
        "deploymentRef": {"name": "vllm"},
        "port": site.server.port,
        "servedName": NAME,
        "controlTokenSecretRef": {"name": "control"},
        "apiKeySecretRef": {"name": "key"},
    }
    source: JsonValue = {"persistentVolumeClaim": {"claimName": "model", "path": "tiny"}}
    spec: dict[str, JsonValue] = {
        "serving": serving,
        "model": {"name": BASE_MODEL, "source": source},
        "rollouts": {"logprobs": True},
    }
    place(small, ["127.0.0.1"], site.server.port, adapter_spec=spec)
    small.put(SECRETS, NAMESPACE, _secret("control", TOKEN))
    small.put(SECRETS, NAMESPACE, _secret("key", API_KEY))
    async with VllmClient(site.server.url, control_token=TOKEN, api_key=API_KEY, timeout_seconds=60.0) as client:
        await put_in_service(client, served_name=NAME, version=3, path=site.path(3), probe=ProbeSpec("Hello", 4))
        try:
            async with front_of(small, 1) as made, listening(Inference(made.services)) as url:
                yield made, url
        finally:
            await take_out_of_service(client, served_name=NAME)


async def test_answers_are_the_servers_own_and_what_was_sampled_is_stored(
    site: Site, front: tuple[Front, str]
) -> None:
    made, url = front
    tokenizer: Any = AutoTokenizer.from_pretrained(site.server.model)
    for body in (
        {"messages": MESSAGES, **GREEDY},
        {"messages": MESSAGES, **GREEDY, "stream": True},
        {"messages": MESSAGES, **GREEDY, "stream": True, "stream_options": {"include_usage": True}},
    ):
        asked = {"model": NAME, **body}
        headers = {"Authorization": f"Bearer {API_KEY}"}
        async with httpx.AsyncClient(timeout=60.0, trust_env=False) as http:
            # A server that falls behind sends several tokens in a chunk, so that two streams may be cut differently.
            for left in range(TRIES - 1, -1, -1):
                direct = await http.post(f"{site.server.url}/v1/chat/completions", json=asked, headers=headers)
                through = await http.post(f"{url}/v1/chat/completions", json=asked)
                if not left or len(_without_identity(through.content)) == len(_without_identity(direct.content)):
                    break
        assert _without_identity(through.content) == _without_identity(direct.content)
        rollout = made.store.kept[-1]
        assert through.headers["x-claas-rollout"] == rollout.id
        assert (rollout.evidence, rollout.version, rollout.incomplete) == (Evidence.EXACT, 3, None)
        assert len(rollout.response_token_ids) == len(rollout.response_logprobs) == 12
        assert tokenizer.decode(rollout.response_token_ids, skip_special_tokens=True) == rollout.answer
        assert "What colour is it?" in tokenizer.decode(rollout.prompt_token_ids)
        assert rollout.sampling["temperature"] == 0.0


async def test_the_openai_client_chats_and_a_refusal_keeps_its_status(front: tuple[Front, str]) -> None:
    made, url = front
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model="coder", messages=MESSAGES, stream=True, logprobs=True, **GREEDY
        )
        chunks = [chunk async for chunk in stream]
        assert {chunk.model for chunk in chunks} == {"coder"}
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == made.store.kept[-1].answer
        text = await client.completions.create(model="tiny", prompt=["Once", "upon"], n=1, **GREEDY)
        assert len(text.choices) == 2
        assert [each.adapter for each in made.store.kept[-2:]] == [None, None]
        assert all(each.trainable for each in made.store.kept)
        with pytest.raises(openai.BadRequestError, match=r"max_model_len|maximum context length"):
            await client.chat.completions.create(model="coder", messages=MESSAGES, max_tokens=999_999)


async def test_a_score_is_what_the_server_itself_says_of_its_own_answer(front: tuple[Front, str]) -> None:
    _, url = front
    async with httpx.AsyncClient(timeout=60.0, trust_env=False) as http:
        asked = {"model": NAME, "messages": MESSAGES, "completion": "It is green."}
        first, second = await asyncio.gather(*(http.post(f"{url}/v1/score", json=asked) for _ in range(2)))
    score = first.json()
    assert first.status_code == 200, first.text
    assert len(score["logprobs"]) == len(score["tokens"]) == score["completion_tokens"]
    assert "".join(score["tokens"]) == "It is green."
    assert score["logprob_sum"] == pytest.approx(sum(score["logprobs"]))
    assert all(logprob < 0 for logprob in score["logprobs"])
    assert second.json()["tokens"] == score["tokens"]


def _without_identity(body: bytes) -> list[Any]:
    """An answer's documents, without identifier and time."""
    lines = [line.removeprefix(b"data: ") for line in body.splitlines() if line and line != b"data: [DONE]"]
    return [{**json.loads(line), "id": "", "created": 0} for line in lines]
