"""The whole gateway before the real inference proxy before the Tinker service's peer: its answers are the proxy's,
what was sampled is recorded, and feedback on it becomes samples."""

import os

os.environ["TINKER_TELEMETRY"] = "0"

import asyncio
import base64
import io
import json
import zipfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import openai
import pytest
import pytest_asyncio
import tinker
from openai.types.chat import ChatCompletionMessageParam
from pydantic import JsonValue
from transformers import AutoTokenizer

from claas_crds.v1alpha1.lora import LoraSpec
from claas_gateway.records import Evidence, Rollout
from claas_gateway.rollouts.hashing import answer_hash
from claas_gateway.rollouts.visible import visible_text
from claas_kube.resources import ADAPTERS, SECRETS
from claas_tinker_client.version_file import VERSION_FILE, TinkerVersion
from claas_trainer.store.content import Bytes
from claas_trainer.store.record import VersionRecord
from claas_trainer.store.versions import VersionStore
from claas_vllm_client import ProbeSpec, VllmClient, put_in_service
from tests.builders.front import NAMESPACE
from tests.builders.models import build_tiny_qwen3
from tests.builders.whole_gateway import WholeGateway, succeeds_by_tinker, weights, whole_gateway
from tests.contract.peers.steps import RANK, fresh, step
from tests.contract.tinker.proxy_server import BASE_MODEL, SERVED_NAME, TOKEN, ProxyServer
from tests.peers.tinker.server import TinkerPeer
from tests.simulation.openai_server import OpenAIServer

pytestmark = [pytest.mark.contract, pytest.mark.asyncio(loop_scope="module")]

CHAT = "/v1/chat/completions"
MESSAGES: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": "You are a guide."},
    {"role": "user", "content": "What colour is it?"},
]
GREEDY: dict[str, Any] = {"max_tokens": 12, "temperature": 0.0}
WISH = "Shorter, please."


@dataclass
class Proxied(OpenAIServer):
    """The proxy in the scripted server's place: it listens already."""

    proxy: ProxyServer | None = None

    @asynccontextmanager
    async def serving(self, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[OpenAIServer]:
        assert self.proxy is not None
        self.host, self.port = host, self.proxy.port
        yield self


@dataclass(frozen=True)
class Chain:
    """Peer, proxy and gateway, and what is on the adapter's volume."""

    gateway: WholeGateway
    proxy: ProxyServer
    tokenizer: Any

    @property
    def openai(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.gateway.url}/v1", api_key="any", max_retries=0)

    async def rollout(self, identifier: str) -> Rollout:
        found = await self.gateway.store.rollouts.get(identifier)
        assert found is not None
        return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_qwen3(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def peer(model: Path) -> Iterator[TinkerPeer]:
    with TinkerPeer(model) as peer:
        yield peer


@pytest.fixture(scope="module")
def proxy(model: Path, peer: TinkerPeer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyServer]:
    """A proxy that serves version 1, which the peer has trained."""
    server = ProxyServer(model, peer.url, peer.model_name, tmp_path_factory.mktemp("proxy"))
    publish(server.storage, 1, trained(peer, "v1"))
    try:
        yield server.launch().wait_until_ready()
    finally:
        server.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chain(proxy: ProxyServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Chain]:
    async with gateway_before(proxy, tmp_path_factory.mktemp("gateway")) as found:
        yield found


@asynccontextmanager
async def gateway_before(proxy: ProxyServer, folder: Path, token: str = TOKEN) -> AsyncIterator[Chain]:
    """A gateway that knows this control token, if it is one."""
    source: JsonValue = {"persistentVolumeClaim": {"claimName": "model", "path": "tiny"}}
    spec: dict[str, JsonValue] = {
        "loraId": SERVED_NAME,
        "model": {"name": BASE_MODEL, "source": source},
        "engine": {"tinker": {"baseModel": proxy.peer_model}},
        "serving": {"tinkerProxy": {}, "servedName": SERVED_NAME},
    }
    async with whole_gateway(
        folder, names={"tone": spec}, server=Proxied(proxy=proxy), REPLAYS_PER_BATCH="1"
    ) as made:
        data: JsonValue = {"token": base64.b64encode(token.encode()).decode()}
        made.small.put(SECRETS, NAMESPACE, {"metadata": {"name": "tone-tinker-proxy"}, "data": data})
        yield Chain(made, proxy, AutoTokenizer.from_pretrained(proxy.model))


def trained(peer: TinkerPeer, name: str, steps: int = 1) -> TinkerVersion:
    """Steps by the service, and the last one's checkpoints."""
    client = fresh(tinker.ServiceClient(base_url=peer.url, api_key="tml-test"), peer)
    for number in range(steps):
        step(client, 3 + number)
    state = client.save_state(name).result().path
    sampler = client.save_weights_for_sampler(name).result().path
    return TinkerVersion(
        base_model=peer.model_name, rank=RANK, seed=1, step=steps, run="run", state_path=state, sampler_path=sampler
    )


def publish(folder: Path, number: int, version: TinkerVersion) -> None:
    """Write a version as the trainer does."""
    store = VersionStore(folder)
    record = VersionRecord(
        number=number,
        lora_id=SERVED_NAME,
        created=datetime.now(UTC),
        engine="tinker",
        base_model=BASE_MODEL,
        lora=LoraSpec(rank=RANK),
        weights=version.sampler_path,
    )
    store.prepare(owner="test", attempt=1, needed_bytes=0)
    store.publish(record, {VERSION_FILE: Bytes(version.model_dump_json().encode())}, owner="test")


@pytest.mark.parametrize("name", [SERVED_NAME, "tone", f"{SERVED_NAME}-init", "team-tone-latest"])
@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_openai_client_is_answered_is_recorded_whole(chain: Chain, name: str, stream: bool) -> None:
    async with chain.openai as client:
        raw = await client.chat.completions.with_raw_response.create(
            model=name, messages=MESSAGES, stream=stream, **GREEDY
        )
        answer: Any = raw.parse()
        if stream:
            chunks = [chunk async for chunk in answer]
            assert {chunk.model for chunk in chunks} == {name}
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        else:
            assert answer.model == name
            text = answer.choices[0].message.content or ""
    rollout = await chain.rollout(raw.headers["x-claas-rollout"])
    assert (rollout.evidence, rollout.version, rollout.incomplete) == (Evidence.EXACT, 1, None)
    assert rollout.answer == text.strip()
    assert len(rollout.response_token_ids) == len(rollout.response_logprobs) == 12
    assert chain.tokenizer.decode(rollout.response_token_ids, skip_special_tokens=True) == text
    assert "What colour is it?" in chain.tokenizer.decode(rollout.prompt_token_ids)
    assert rollout.sampling["temperature"] == 0.0


async def test_answers_are_the_proxy_s_own(chain: Chain) -> None:
    """Also where several are asked for, and by the base model; a refusal keeps its words."""
    bodies: list[dict[str, Any]] = [
        {"model": SERVED_NAME, "messages": MESSAGES, **GREEDY},
        {"model": SERVED_NAME, "messages": MESSAGES, **GREEDY, "stream": True},
        {"model": SERVED_NAME, "messages": MESSAGES, **GREEDY, "logprobs": True, "top_logprobs": 3},
        {"model": SERVED_NAME, "messages": MESSAGES, **GREEDY, "return_token_ids": True},
        {"model": BASE_MODEL, "messages": MESSAGES, **GREEDY},
        {"model": SERVED_NAME, "messages": MESSAGES, "max_tokens": 999_999},
        {"model": SERVED_NAME, "messages": MESSAGES, "presence_penalty": 0.5},
    ]
    http = chain.gateway.http
    for body in bodies:
        async with (
            http.post(chain.proxy.url + CHAT, json=body) as direct,
            http.post(chain.gateway.url + CHAT, json=body) as through,
        ):
            assert through.status == direct.status
            assert without_identity(await through.read()) == without_identity(await direct.read())


async def test_each_of_several_answers_is_recorded(chain: Chain) -> None:
    body = {"model": SERVED_NAME, "messages": MESSAGES, "n": 2, "max_tokens": 5, "temperature": 1.0, "seed": 3}
    async with chain.gateway.http.post(chain.gateway.url + CHAT, json=body) as answer:
        said = [choice["message"]["content"] for choice in (await answer.json())["choices"]]
        first = await chain.rollout(answer.headers["x-claas-rollout"])
    assert len(set(said)) == 2
    for place, text in enumerate(said):
        found = await chain.gateway.store.rollouts.find(NAMESPACE, "tone", answer_hash(visible_text(text)), None)
        assert found is not None
        assert (found.choice, found.request_id, found.trainable) == (place, first.id, True)
        assert chain.tokenizer.decode(found.response_token_ids) == text


async def test_a_gateway_without_the_control_token_asks_for_the_ids_with_the_answer(
    proxy: ProxyServer, tmp_path: Path
) -> None:
    async with gateway_before(proxy, tmp_path, token="") as chain:
        small, directory = chain.gateway.small, chain.gateway.services.directory
        tone = small.found(ADAPTERS, NAMESPACE, "tone")
        replicas: JsonValue = [{"pod": "vllm-0", "version": 1, "state": "Serving"}]
        small.put(ADAPTERS, NAMESPACE, {**tone, "status": {"replicas": replicas}})
        await small.until(lambda: bool(directory.adapters(None)[0].found.status.replicas))
        for stream in (False, True):
            body = {"model": SERVED_NAME, "messages": MESSAGES, "stream": stream, **GREEDY}
            async with (
                chain.gateway.http.post(proxy.url + CHAT, json=body) as direct,
                chain.gateway.http.post(chain.gateway.url + CHAT, json=body) as through,
            ):
                assert text_of(await through.read()) == text_of(await direct.read())
                rollout = await chain.rollout(through.headers["x-claas-rollout"])
            assert (rollout.evidence, rollout.version, rollout.incomplete) == (Evidence.WIRE, 1, None)
            assert len(rollout.response_token_ids) == len(rollout.response_logprobs) == 12
            assert chain.tokenizer.decode(rollout.response_token_ids, skip_special_tokens=True) == rollout.answer


async def test_feedback_becomes_a_sample_with_what_was_sampled_and_by_which_version(chain: Chain) -> None:
    gateway = chain.gateway
    gateway.ending = succeeds_by_tinker(2)
    async with chain.openai as client:
        raw = await client.chat.completions.with_raw_response.create(model=SERVED_NAME, messages=MESSAGES, **GREEDY)
        text = raw.parse().choices[0].message.content
    body: JsonValue = {
        "requests": [
            {"lora_id": f"{SERVED_NAME}-init", "prompt": "What colour is it?", "response": text, "feedback": WISH}
        ],
        "orchestration": {"sleep_before": False, "wake_after": False},
    }
    status, told, _ = await gateway.send("POST", "/v1/feedback", body)
    assert status == 200, told
    result = told["distill_result"]
    assert isinstance(result, dict)
    assert result["metadata"]["sampler_weights_path"] == weights(2)  # type: ignore[index, call-overload]
    rollout = await chain.rollout(raw.headers["x-claas-rollout"])
    ((sample,),) = gateway.samples.values()
    assert sample["prompt_token_ids"] == list(rollout.prompt_token_ids)
    assert sample["response_token_ids"] == list(rollout.response_token_ids)
    assert sample["response_logprobs"] == pytest.approx(list(rollout.response_logprobs))
    assert sample["feedback"] == WISH


async def test_a_completion_is_scored(chain: Chain) -> None:
    """As the proxy scores it itself."""
    asked = {"model": SERVED_NAME, "messages": MESSAGES, "completion": "It is green."}
    async with (
        chain.gateway.http.post(chain.gateway.url + "/v1/score", json=asked) as through,
        chain.gateway.http.post(chain.proxy.url + "/v1/score", json=asked) as direct,
    ):
        score, own = await through.json(), await direct.json()
    assert "".join(score["tokens"]) == "It is green."
    assert len(score["logprobs"]) == score["completion_tokens"]
    assert score["logprob_sum"] == pytest.approx(sum(score["logprobs"]))
    assert score["logprobs"] == pytest.approx(own["logprobs"], abs=1e-5)


async def test_an_export_says_where_the_weights_are(chain: Chain) -> None:
    async with chain.gateway.http.get(
        f"{chain.gateway.url}/v1/lora/export", params={"lora_id": SERVED_NAME}
    ) as answer:
        assert answer.status == 200
        with zipfile.ZipFile(io.BytesIO(await answer.read())) as archive:
            document = json.loads(archive.read(VERSION_FILE))
    assert document["sampler_path"].startswith("tinker://")


async def test_after_a_swap_answers_are_recorded_as_the_new_version_s_and_it_is_asked_again(
    chain: Chain, peer: TinkerPeer
) -> None:
    publish(chain.proxy.storage, 2, trained(peer, "v2", steps=2))
    async with VllmClient(chain.proxy.url, control_token=TOKEN, timeout_seconds=60.0) as client:
        path = str(chain.proxy.storage / "versions" / "2")
        await put_in_service(client, served_name=SERVED_NAME, version=2, path=path, probe=ProbeSpec("Hello", 4))
    body = {"model": SERVED_NAME, "messages": MESSAGES, **GREEDY}
    async with chain.gateway.http.post(chain.gateway.url + CHAT, json=body) as answer:
        assert answer.headers["x-claas-version"] == f"{SERVED_NAME}@2"
        rollout = await chain.rollout(answer.headers["x-claas-rollout"])
    assert rollout.version == 2
    chain.gateway.ending = succeeds_by_tinker(2)
    given: JsonValue = {"requests": [{"lora_id": SERVED_NAME, "rollout_id": rollout.id, "feedback": WISH}]}
    status, told, _ = await chain.gateway.send("POST", "/v1/feedback", given)
    assert status == 200, told
    (item,) = cast("list[dict[str, str]]", told["items"])
    assert await answer_after(chain, item["id"]) == rollout.answer, "it was greedy before, too"


async def answer_after(chain: Chain, item: str) -> str:
    """What the version that learned from an item answers to its prompt."""
    async with asyncio.timeout(20):
        while True:
            found = await chain.gateway.store.feedback.item(item)
            assert found is not None
            if found.answer_after is not None:
                return found.answer_after
            await asyncio.sleep(0.05)


def text_of(body: bytes) -> str:
    """What an answer says, at once or in events."""
    choices = [choice for document in without_identity(body) for choice in document["choices"]]
    return "".join(choice.get("message", choice.get("delta"))["content"] or "" for choice in choices)


def without_identity(body: bytes) -> list[Any]:
    """An answer's documents, without identifier and time."""
    lines = [line.removeprefix(b"data: ") for line in body.splitlines() if line and line != b"data: [DONE]"]
    return [{**json.loads(line), "id": "", "created": 0} for line in lines]
