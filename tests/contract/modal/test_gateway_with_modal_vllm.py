"""The gateway's own process, a real API server, and the deployed vLLM app behind the front of Modal's peer: a request
starts the container, its answer is recorded, and feedback on it becomes a DistillJob."""

from __future__ import annotations

import base64
import io
import json
import shutil
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import JsonValue
from sqlalchemy import create_engine, select
from transformers import AutoTokenizer

from claas_gateway.records import Evidence, Rollout
from claas_gateway.store.schema.tables import rollouts
from tests.builders.models import build_tiny_qwen3, build_versions
from tests.cluster.light import light_cluster
from tests.contract.modal.serving.modal_site import (
    APP,
    CONTAINER_ENVIRONMENT,
    CONTROL_TOKEN,
    FOLLOW_SECONDS,
    HEADERS,
    MODEL,
    START_SECONDS,
    ModalSite,
    eventually,
)
from tests.integration.api.manifests import ADAPTER, CRD_FOLDER, ApiServer, changed
from tests.peers.modal.server import PROXY_KEY, PROXY_SECRET, ModalPeer
from tests.simulation.gateway_process import GatewayProcess

pytestmark = pytest.mark.contract

NAMESPACE = "by-modal"
CHAT = "/v1/chat/completions"
QUESTION = "What colour is it?"
ASKED: dict[str, JsonValue] = {
    "model": "tone",
    "messages": [{"role": "user", "content": QUESTION}],
    "max_tokens": 12,
    "temperature": 0.0,
}
NOT_WHOLE = "\N{REPLACEMENT CHARACTER}"
WISH = "Shorter, please."


@dataclass(frozen=True)
class Chain:
    """Gateway, API server, and the app on the peer."""

    site: ModalSite
    server: ApiServer
    gateway: GatewayProcess
    tokenizer: Any

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.gateway.url + path, timeout=60.0)

    def post(self, path: str, body: JsonValue, **headers: str) -> httpx.Response:
        return httpx.post(self.gateway.url + path, json=body, headers=headers, timeout=START_SECONDS)

    def rollout(self, answer: httpx.Response) -> Rollout:
        """What was recorded of an answer, read beside the gateway that writes it."""
        engine = create_engine(self.gateway.database_url.replace("+aiosqlite", ""))
        identifier = answer.headers["x-claas-rollout"]
        with engine.connect() as connection:
            row = connection.execute(select(rollouts).where(rollouts.c.id == identifier)).one()
        engine.dispose()
        return Rollout(**row._mapping)

    def started(self) -> int:
        """How many containers there have been."""
        return len(self.site.peer.containers(APP, alive=False))

    def secret(self, name: str, **texts: str) -> None:
        """Make or replace a Secret."""
        manifest = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name},
            "data": {key: base64.b64encode(text.encode()).decode() for key, text in texts.items()},
        }
        self.server.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))

    def job(self, name: str) -> dict[str, Any]:
        """A DistillJob as the API server has it."""
        found: dict[str, Any] = json.loads(self.server.kubectl("get", "distilljob", name, "-o", "json"))
        return found


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    root = tmp_path_factory.mktemp("gateway-modal")
    model = build_tiny_qwen3(root / "model")
    with (
        light_cluster() as cluster,
        ModalPeer(root / "peer", container_environment=CONTAINER_ENVIRONMENT) as peer,
    ):
        shutil.copytree(model, peer.volume("claas-weights") / MODEL)
        peer.volume("claas-adapters")
        peer.secret("claas-control", {"CLAAS_CONTROL_TOKEN": CONTROL_TOKEN})
        site = ModalSite(peer, build_versions(model, root / "storage", count=2))
        site.deploy(CLAAS_MODAL_MAX_CONTAINERS="1")
        site.point("tone", 1)
        settings = {"CLAAS_GATEWAY_COLD_START_SECONDS": str(START_SECONDS), "CLAAS_LOG_LEVEL": "DEBUG"}
        gateway = GatewayProcess(cluster, root, [NAMESPACE], settings=settings)
        server = ApiServer(cluster, NAMESPACE)
        chain = Chain(site, server, gateway, AutoTokenizer.from_pretrained(model))
        install(chain)
        gateway.start_ready()
        try:
            yield chain
        finally:
            gateway.stop()
            server.close()


def install(chain: Chain) -> None:
    """Be the operator: an adapter, its Secrets, and the address that was found for it."""
    server = chain.server
    server.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRD_FOLDER))
    server.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
    server.kubectl("create", "namespace", NAMESPACE)
    chain.secret("claas-modal-proxy", key=PROXY_KEY, secret=PROXY_SECRET)
    chain.secret("vllm-control", token=CONTROL_TOKEN)
    adapter = changed(ADAPTER, "spec.model.name", "tiny")
    adapter = changed(adapter, "spec.engine", {"modal": {}})
    adapter = changed(adapter, "spec.rollouts", {"logprobs": True})
    adapter = changed(adapter, "spec.feedback", {"windowSeconds": 1})
    adapter = changed(
        adapter, "spec.serving", {"modalApp": {}, "controlTokenSecretRef": {"name": "vllm-control", "key": "token"}}
    )
    server.kubectl("apply", "-f", "-", stdin=json.dumps(adapter))
    status = json.dumps({"status": {"servingUrl": chain.site.url}})
    server.kubectl("patch", "loraadapter", "tone", "--subresource=status", "--type=merge", "-p", status)


def without_identity(body: bytes) -> list[Any]:
    """An answer's documents, without identifier and time."""
    lines = [line.removeprefix(b"data: ") for line in body.splitlines() if line.startswith((b"data: {", b"{"))]
    return [{**json.loads(line), "id": "", "created": 0} for line in lines]


def test_until_a_client_asks_no_container_is_started(chain: Chain) -> None:
    eventually(30.0, lambda: "tone" in chain.get("/v1/models").text)
    assert [card["id"] for card in chain.get("/v1/models").json()["data"]] == ["tiny", "tone"]
    for path in ("/v1/lora", "/v1/dashboard", "/v1/dashboard/tone", "/readyz"):
        chain.get(path)
    assert chain.get("/v1/health").json()["status"] == "healthy"
    time.sleep(2.0)
    assert chain.started() == 0


def test_a_first_answer_comes_when_the_container_is_there_and_is_recorded(chain: Chain) -> None:
    answer = chain.post(CHAT, ASKED)
    assert answer.status_code == httpx.codes.OK, answer.text + chain.site.logs()[-3000:]
    assert answer.headers["x-claas-version"] == "tone@1"
    assert chain.started() == 1
    rollout = chain.rollout(answer)
    assert (rollout.evidence, rollout.version, rollout.incomplete) == (Evidence.EXACT, 1, None)
    assert len(rollout.response_token_ids) == len(rollout.response_logprobs) == 12
    told = chain.tokenizer.decode(rollout.response_token_ids, skip_special_tokens=True)
    # vLLM keeps back the bytes of a character that is not whole.
    assert told.strip().rstrip(NOT_WHOLE) == rollout.answer.rstrip(NOT_WHOLE) != ""
    assert QUESTION in chain.tokenizer.decode(rollout.prompt_token_ids)


@pytest.mark.parametrize("stream", [False, True])
def test_answers_are_those_of_the_app_itself(chain: Chain, stream: bool) -> None:
    asked = {**ASKED, "stream": stream}
    direct = httpx.post(chain.site.url + CHAT, json=asked, headers=HEADERS, timeout=60.0, trust_env=False)
    through = chain.post(CHAT, asked)
    said, own = ("".join(map(text_of, without_identity(each.content))) for each in (through, direct))
    assert said == own != ""
    assert chain.rollout(through).answer == own.strip()


def text_of(document: dict[str, Any]) -> str:
    return "".join(
        choice.get("message", choice.get("delta"))["content"] or ""
        for choice in document["choices"]
        if choice.get("message", choice.get("delta")).get("content")
    )


def test_a_refusal_of_vllm_keeps_its_words(chain: Chain) -> None:
    answer = chain.post(CHAT, {**ASKED, "max_tokens": 999_999})
    assert answer.status_code == httpx.codes.BAD_REQUEST
    assert "max_tokens" in answer.text or "context length" in answer.text


def test_a_completion_is_scored_and_the_version_in_service_exported(chain: Chain) -> None:
    asked: JsonValue = {"model": "tone", "messages": ASKED["messages"], "completion": "It is green."}
    score = chain.post("/v1/score", asked).json()
    assert "".join(score["tokens"]) == "It is green."
    assert score["logprob_sum"] == pytest.approx(sum(score["logprobs"]))
    exported = chain.get(f"/v1/lora/export?lora_id={NAMESPACE}/tone")
    assert exported.headers["x-claas-version"] == "tone@1"
    with zipfile.ZipFile(io.BytesIO(exported.content)) as archive:
        weights = archive.read("adapter_model.safetensors")
    assert weights == (chain.site.versions[0] / "adapter_model.safetensors").read_bytes()


def test_feedback_on_an_answer_becomes_a_job_with_what_was_sampled(chain: Chain) -> None:
    rollout = chain.rollout(chain.post(CHAT, ASKED))
    given: JsonValue = {
        "requests": [{"lora_id": f"{NAMESPACE}/tone-init", "rollout_id": rollout.id, "feedback": WISH}],
        "orchestration": {"sleep_before": True, "wake_after": True, "sleep_level": 1},
    }
    told = chain.post("/v1/feedback", given, Prefer="respond-async")
    assert told.status_code == httpx.codes.ACCEPTED, told.text
    item = told.json()["items"][0]["id"]

    def batch() -> str | None:
        found = chain.get(f"/v1/feedback/{item}").json()
        return found["batch_id"] if found["state"] == "in-job" else None

    name = eventually(90.0, batch)
    job = chain.job(name)
    assert job["spec"]["adapterRef"] == {"name": "tone"}
    secret = json.loads(chain.server.kubectl("get", "secret", name, "-o", "json"))
    (sample,) = [json.loads(line) for line in base64.b64decode(secret["data"]["samples.json"]).splitlines()]
    assert sample["response_token_ids"] == list(rollout.response_token_ids)
    assert sample["prompt_token_ids"] == list(rollout.prompt_token_ids)
    assert sample["response_logprobs"] == pytest.approx(list(rollout.response_logprobs))
    assert (sample["feedback"], sample["version"]) == (WISH, 1)


def test_after_a_swap_answers_are_recorded_as_the_new_version_s(chain: Chain) -> None:
    chain.site.point("tone", 2)

    def second() -> httpx.Response | None:
        answer = chain.post(CHAT, ASKED)
        assert answer.status_code == httpx.codes.OK, answer.text
        return answer if answer.headers["x-claas-version"] == "tone@2" else None

    assert chain.rollout(eventually(FOLLOW_SECONDS, second)).version == 2
    assert chain.started() == 1


def test_a_proxy_token_that_modal_refuses_is_told_and_a_new_one_is_used_at_once(chain: Chain) -> None:
    chain.site.peer.accept_proxy(PROXY_KEY, "ws-the-next-one")
    refused = chain.post(CHAT, ASKED)
    assert refused.status_code == httpx.codes.SERVICE_UNAVAILABLE
    assert "proxyTokenSecretRef" in refused.text
    chain.secret("claas-modal-proxy", key=PROXY_KEY, secret="ws-the-next-one")
    assert chain.post(CHAT, ASKED).status_code == httpx.codes.OK


def test_the_log_has_neither_tokens_nor_the_address_nor_what_was_said(chain: Chain) -> None:
    log = Path(chain.gateway.log).read_text()
    assert "modal:claas-vllm did not answer: HTTP 503" in log
    assert "modal:claas-vllm did not answer: HTTP 401" in log
    for private in (PROXY_KEY, PROXY_SECRET, "ws-the-next-one", CONTROL_TOKEN, chain.site.url, QUESTION, WISH):
        assert private not in log
