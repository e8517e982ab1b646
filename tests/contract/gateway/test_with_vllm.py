"""The gateway before the real vLLM: with the companion's records, and with what stock vLLM tells when asked."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from claas_gateway.inference.routes import Inference
from claas_gateway.records import Evidence, Rollout
from claas_kube.objects.meta import Manifest
from claas_kube.resources import PODS, SECRETS
from tests.builders.front import NAMESPACE, Front, front, listening, vllm_pod
from tests.contract.site import API_KEY, TOKEN, Site
from tests.contract.test_recording_with_vllm import CHAT, COMPLETIONS, KINDS, STREAMED, TRIES, comparable
from tests.contract.vllm_server import BASE_MODEL

pytestmark = pytest.mark.contract

# vLLM tells no ids where reasoning is hidden, and leaves the prompt's text out of an echo that has ids.
_UNTOLD = ("hidden reasoning", "tools and hidden reasoning", "echo", "echo with log-probabilities")


@dataclass
class Asking:
    """A client that asks the server, or the gateway before it."""

    front: Front
    http: aiohttp.ClientSession
    direct: str
    through: str
    companion: bool

    async def body(self, url: str, path: str, document: dict[str, Any]) -> bytes:
        headers = {"Authorization": f"Bearer {API_KEY}"} if url == self.direct else {}
        async with self.http.post(url + path, json=document, headers=headers) as answer:
            assert answer.status == 200, await answer.text()
            assert [name for name in answer.headers if name.lower() == "x-claas-record"] == []
            return await answer.read()

    def comparable(self, body: bytes) -> bytes:
        """For comparison. Where usage is asked for, as it is for our sake, vLLM puts its fingerprint there."""
        body = comparable(body)
        return body if self.companion else re.sub(rb',"system_fingerprint":"[^"]*"', b"", body)

    async def same(self, path: str, document: dict[str, Any]) -> list[Rollout]:
        """Ask both until their answers are the same; the rollouts of the last request through the gateway."""
        document = {"model": BASE_MODEL, **document}
        directly: set[bytes] = set()
        through: set[bytes] = set()
        for _ in range(TRIES):
            directly.add(self.comparable(await self.body(self.direct, path, document)))
            self.front.store.kept.clear()
            through.add(self.comparable(await self.body(self.through, path, document)))
            if directly & through:
                return self.front.store.kept
        assert through == directly
        return []


@asynccontextmanager
async def gateway(site: Site, *, companion: bool) -> AsyncIterator[Asking]:
    secrets: Manifest = {"apiKeySecretRef": {"name": "vllm-key"}}
    if companion:
        secrets["controlTokenSecretRef"] = {"name": "site-control"}
    spec: Manifest = {
        "model": {"name": BASE_MODEL, "source": {"persistentVolumeClaim": {"claimName": "model", "path": "tiny"}}},
        "serving": {"deploymentRef": {"name": "vllm"}, "port": site.server.port, **secrets},
    }
    async with (
        front(adapter_spec=spec, base=BASE_MODEL) as made,
        listening(Inference(made.services)) as through,
        aiohttp.ClientSession() as http,
    ):
        for name, text in (("vllm-key", API_KEY), ("site-control", TOKEN)):
            data: Manifest = {"token": base64.b64encode(text.encode()).decode()}
            made.small.put(SECRETS, NAMESPACE, {"metadata": {"name": name}, "data": data})
        made.small.put(PODS, NAMESPACE, vllm_pod("vllm-0", "127.0.0.1"))
        target = made.services.directory.resolve(BASE_MODEL, NAMESPACE)
        await made.small.until(lambda: bool(made.services.directory.servers(target.servers)))
        yield Asking(made, http, site.server.url, through, companion)


@pytest.fixture
async def recording(site: Site) -> AsyncIterator[Asking]:
    async with gateway(site, companion=True) as asking:
        yield asking


@pytest.fixture
async def stock(site: Site) -> AsyncIterator[Asking]:
    async with gateway(site, companion=False) as asking:
        yield asking


@pytest.mark.parametrize("streamed", STREAMED)
@pytest.mark.parametrize("kind", KINDS)
async def test_the_client_gets_the_servers_bytes_and_each_answer_becomes_an_exact_rollout(
    recording: Asking, kind: str, streamed: str
) -> None:
    path, body = KINDS[kind]
    rollouts = await recording.same(path, {**body, **STREAMED[streamed]})
    prompts = body["prompt"] if isinstance(body.get("prompt"), list) else [None]
    assert [rollout.choice for rollout in rollouts] == list(range(body.get("n", 1) * len(prompts)))
    assert [(rollout.evidence, rollout.incomplete) for rollout in rollouts] == [(Evidence.EXACT, None)] * len(
        rollouts
    )
    assert all(rollout.trainable and rollout.sampling["logprobs_mode"] == "raw_logprobs" for rollout in rollouts)


@pytest.mark.parametrize("streamed", ["whole", "streamed"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_server_without_the_companion_is_asked_for_the_ids_and_the_client_sees_none(
    stock: Asking, kind: str, streamed: str
) -> None:
    path, body = KINDS[kind]
    rollouts = await stock.same(path, {**body, **STREAMED[streamed]})
    known = kind not in _UNTOLD
    evidence = Evidence.WIRE if known else Evidence.NONE
    assert [(rollout.evidence, rollout.trainable) for rollout in rollouts] == [(evidence, known)] * len(rollouts)
    assert rollouts


async def test_both_ways_find_the_same_tokens(recording: Asking, stock: Asking) -> None:
    for path, kind in ((CHAT, "chat"), (COMPLETIONS, "several prompts")):
        exact = await recording.same(path, KINDS[kind][1])
        wire = await stock.same(path, KINDS[kind][1])
        assert [rollout.response_token_ids for rollout in exact] == [rollout.response_token_ids for rollout in wire]
        assert [rollout.prompt_token_ids for rollout in exact] == [rollout.prompt_token_ids for rollout in wire]
