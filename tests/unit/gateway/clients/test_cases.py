"""What existing clients rely on, asked of the whole gateway over a scripted vLLM and operator."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import pytest_asyncio
import yaml
from pydantic import JsonValue

from claas_gateway.settings import Settings
from claas_kube.objects.meta import Manifest
from claas_kube.resources import ADAPTERS, DISTILL_JOBS, PODS
from tests.builders.front import BASE, DEPLOYMENT, NAMESPACE, adapter, vllm_pod
from tests.builders.modal.front import BY_MODAL, place_tokens
from tests.builders.modal.server import ModalServer
from tests.builders.whole_gateway import (
    WholeGateway,
    fails,
    serves,
    stalls,
    succeeds,
    succeeds_by_modal,
    succeeds_by_tinker,
    weights,
    whole_gateway,
)
from tests.simulation.openai_server import OpenAIServer, Script
from tests.unit.gateway.clients.cases import (
    ASKED,
    CHAT,
    CHATS,
    FEEDBACK,
    FEEDBACKS,
    LORA,
    LORAS,
    MODAL,
    MODEL,
    OTHERS,
    QUESTION,
    REPOSITORY,
    SECOND_BASE,
    TEXT,
    TINKER,
    WISH,
    Case,
    Given,
    feedback,
    item,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

AT = "2026-11-27T07:00:00Z"


BY_VLLM: dict[str, JsonValue] = {
    "serving": {"deploymentRef": {"name": DEPLOYMENT}, "controlTokenSecretRef": {"name": "vllm-control"}}
}
BY_TINKER: dict[str, JsonValue] = {
    "model": {"name": BASE, "source": {"hub": {"repository": REPOSITORY}}},
    "engine": {"tinker": {}},
    "serving": {"tinkerProxy": {}},
}


@asynccontextmanager
async def _gateway(
    folder: Path, engine: Mapping[str, JsonValue] = BY_VLLM, server: OpenAIServer | None = None
) -> AsyncIterator[WholeGateway]:
    """A gateway with one adapter, which makes others."""
    server = server or OpenAIServer(Script(models=()))
    template = folder / "template.yaml"

    def with_template(settings: Settings) -> Settings:
        spec: dict[str, JsonValue] = {
            "model": {"name": BASE, "source": {"hub": {"repository": REPOSITORY}}},
            **engine,
            "serving": {"port": server.port, **cast(Manifest, engine["serving"])},
            "storage": {"claimName": "adapters"},
        }
        template.write_text(yaml.safe_dump({"namespace": NAMESPACE, "spec": spec}))
        return replace(settings, adapter_template=template)

    async with whole_gateway(
        folder,
        names={"tone": {"loraId": "acme/tone", **engine}},
        server=server,
        changed=with_template,
        FEEDBACK_WAIT_SECONDS="5",
        REPLAYS_PER_BATCH="0",
    ) as whole:
        yield whole


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[WholeGateway]:
    """One gateway for all rows that don't need their own."""
    async with _gateway(tmp_path_factory.mktemp("gateway")) as whole:
        yield whole


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def by_tinker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[WholeGateway]:
    """The same with the Tinker service, which has taken steps."""
    async with _gateway(tmp_path_factory.mktemp("tinker"), BY_TINKER) as whole:
        tone = whole.small.found(ADAPTERS, NAMESPACE, "tone")
        versions: list[JsonValue] = [
            {"number": n, "path": f"versions/{n}", "digest": "d", "created": AT, "weights": weights(n)}
            for n in (7, 8)
        ]
        status: JsonValue = {"servedVersion": 8, "latestVersion": 8, "versions": versions}
        whole.small.put(ADAPTERS, NAMESPACE, {**tone, "status": status})
        yield whole


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def by_modal(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[WholeGateway]:
    """The same with a vLLM on Modal."""
    server = ModalServer(Script(models=()))
    async with _gateway(tmp_path_factory.mktemp("modal"), BY_MODAL, server) as whole:
        place_tokens(whole.small)
        yield whole


@pytest.mark.parametrize("case", [*CHATS, *FEEDBACKS, *LORAS, *OTHERS, *TINKER, *MODAL], ids=lambda case: case.name)
async def test_clients_find_what_they_rely_on(
    shared: WholeGateway, by_tinker: WholeGateway, by_modal: WholeGateway, case: Case, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        common = by_tinker if case.given.tinker else by_modal if case.given.modal else shared
        gateway = await stack.enter_async_context(_gateway(tmp_path)) if case.given.alone else common
        await stack.enter_async_context(_prepared(gateway, case.given))
        gateway.server.asked.clear()
        body = case.raw if case.raw is not None else None if case.body is None else json.dumps(case.body)
        headers = {"Content-Type": "application/json"} if body is not None else {}
        async with gateway.http.request(case.method, gateway.url + case.path, data=body, headers=headers) as answer:
            text = await answer.text()
        assert answer.status == case.status, text
        assert answer.headers["Content-Type"].startswith(case.content_type)
        if case.stream is not None:
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            _check_stream(text, case)
            return
        assert all(part in text for part in case.text), text
        assert not any(part in text for part in case.lacks), text
        _check(json.loads(text) if "json" in answer.headers["Content-Type"] else {}, case)
        if case.sent or case.unsent:
            ((_, sent),) = gateway.server.asked
            assert case.sent.items() <= sent.items()
            assert not set(case.unsent) & set(sent)


@pytest.mark.parametrize("modal", [False, True])
async def test_what_init_answers_is_taken_by_all_later_calls(
    shared: WholeGateway, by_modal: WholeGateway, modal: bool
) -> None:
    gateway = by_modal if modal else shared
    async with _prepared(gateway, Given(modal=modal)):
        _, made, _ = await gateway.send("POST", f"{LORA}/init", {"lora_id": "acme/new"})
        lora_id = str(made["lora_id"])
        _, listed, _ = await gateway.send("GET", LORA)
        assert listed == {"loras": ["acme/new-init", "acme/new-latest", "acme/tone-init", "acme/tone-latest"]}
        for name in (lora_id, "acme-new-init", "acme/new", "acme/new-latest"):
            status, answer, _ = await gateway.send("POST", CHAT, {"model": name, "messages": ASKED})
            assert (status, answer["model"]) == (200, name)
        for name in (lora_id, "acme/new", "acme/new-latest"):
            status, answer, _ = await gateway.send("POST", FEEDBACK, feedback(item(lora_id=name)))
            assert (status, answer["lora_id"]) == (200, name)
        status, answer, _ = await gateway.send("DELETE", f"{LORA}?lora_id={lora_id}")
        assert (status, answer) == (200, {"deleted": True})


@pytest.mark.parametrize(("sent", "trained"), [(100, None), (20, 20), (50, 50)])
async def test_claas_s_default_that_the_tinker_service_can_t_follow_counts_as_left_out(
    by_tinker: WholeGateway, sent: int, trained: int | None
) -> None:
    """What somebody chose is passed on, and refused where it has to be."""
    async with _prepared(by_tinker, Given(tinker=True, asked=True)):
        before = set(by_tinker.jobs())
        settings: JsonValue = {"learning_rate": 3e-5, "teacher_top_k": sent}
        status, _, _ = await by_tinker.send("POST", FEEDBACK, feedback(item(training=settings)))
        assert status == 200
        (name,) = set(by_tinker.jobs()) - before
        spec = cast(Manifest, by_tinker.small.found(DISTILL_JOBS, NAMESPACE, name)["spec"])
        assert cast(Manifest, spec["training"]).get("teacher_top_k") == trained


async def test_feedback_whose_step_failed_stays_stored(shared: WholeGateway) -> None:
    async with _prepared(shared, Given(asked=True, fails=True)):
        status, refused, _ = await shared.send("POST", FEEDBACK, feedback())
        assert status == 500
        status, kept, _ = await shared.send("GET", f"{FEEDBACK}/{_at(dict(refused), 'items.0.id')}")
        assert (status, kept["feedback"]) == (200, WISH)


@asynccontextmanager
async def _prepared(gateway: WholeGateway, given: Given) -> AsyncIterator[None]:
    """Have what holds before the request, and take back afterwards what would stay."""
    server = gateway.server
    server.script.answer, server.script.status = given.answer, 200
    server.script.lost_ids = int(given.loses_ids)
    succeeded = succeeds_by_tinker() if given.tinker else succeeds_by_modal() if given.modal else succeeds()
    gateway.ending = fails() if given.fails else succeeded
    gateway.beginning = stalls if given.stalls else serves
    if given.asked or given.fed_back:
        await _chat(gateway)
    if given.completed:
        status, _, _ = await gateway.send("POST", TEXT, {"model": MODEL, "prompt": QUESTION})
        assert status == 200
    for wish in given.fed_back:
        status, _, _ = await gateway.send("POST", FEEDBACK, feedback(item(feedback=wish)))
        assert status == 200
    server.script.status = given.upstream_status
    try:
        async with AsyncExitStack() as stack:
            if given.busy:
                await stack.enter_async_context(_busy(gateway))
            if given.down:
                await stack.enter_async_context(_down(gateway))
            if given.several_bases:
                await stack.enter_async_context(_second_base(gateway))
            yield
    finally:
        for name in gateway.made():
            gateway.small.remove(ADAPTERS, NAMESPACE, name)
        await gateway.small.until(lambda: len(gateway.services.directory.adapters(None)) == 1)


async def _chat(gateway: WholeGateway) -> None:
    status, _, _ = await gateway.send("POST", CHAT, {"model": MODEL, "messages": ASKED})
    assert status == 200


@asynccontextmanager
async def _busy(gateway: WholeGateway) -> AsyncIterator[None]:
    server = gateway.server
    server.thinks.clear()
    chat = asyncio.create_task(_chat(gateway))
    try:
        await gateway.small.until(lambda: server.running == 1)
        yield
        assert server.running == 1
    finally:
        server.thinks.set()
        await chat


@asynccontextmanager
async def _down(gateway: WholeGateway) -> AsyncIterator[None]:
    await _set_ready(gateway, False)
    try:
        yield
    finally:
        await _set_ready(gateway, True)


async def _set_ready(gateway: WholeGateway, ready: bool) -> None:
    directory = gateway.services.directory
    group = directory.adapters(None)[0].servers
    gateway.small.put(PODS, NAMESPACE, vllm_pod("vllm-0", gateway.server.host, ready=ready))
    await gateway.small.until(lambda: [each.ready for each in directory.servers(group)] == [ready])


@asynccontextmanager
async def _second_base(gateway: WholeGateway) -> AsyncIterator[None]:
    directory = gateway.services.directory
    source: JsonValue = {"persistentVolumeClaim": {"claimName": "model", "path": "second"}}
    spec: dict[str, JsonValue] = {"model": {"name": SECOND_BASE, "source": source}}
    gateway.small.put(ADAPTERS, NAMESPACE, adapter("second", gateway.server.port, spec=spec))
    try:
        await gateway.small.until(lambda: len(directory.base_models(None)) == 2)
        yield
    finally:
        gateway.small.remove(ADAPTERS, NAMESPACE, "second")


def _check(document: JsonValue, case: Case) -> None:
    for path, value in case.equals.items():
        found = _at(document, path)
        assert (type(found), found) == (type(value), value), path
    for path, kind in case.types.items():
        assert type(_at(document, path)) is kind, path
    for path, parts in case.contains.items():
        assert all(part in str(_at(document, path)) for part in parts), document


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
