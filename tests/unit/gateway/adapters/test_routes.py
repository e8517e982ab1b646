"""The routes below /v1/lora, over the real directory, a small API server and scripted vLLM servers."""

from __future__ import annotations

import asyncio
import io
import zipfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import aiohttp
import httpx
import pytest
import yaml
from aiohttp import web
from fastapi import FastAPI
from pydantic import JsonValue

from claas_crds.v1alpha1.conditions import is_true
from claas_gateway.access.callers import EVERYTHING, Caller
from claas_gateway.access.dependency import CALLER
from claas_gateway.access.handlers import handle_errors
from claas_gateway.adapters import routes as under_test
from claas_gateway.adapters.routes import router
from claas_kube.objects.meta import Manifest
from claas_kube.resources import ADAPTERS
from tests.builders.api_server import refusal
from tests.builders.front import ADAPTER, BASE, NAMESPACE, Front, front
from tests.builders.modal.front import BY_MODAL
from tests.simulation.openai_server import OpenAIServer, Script
from tests.unit.gateway.adapters.test_planning import SPEC

Play = Callable[[Manifest], list[dict[str, JsonValue]]]


@dataclass
class Scene:
    """A gateway, and the client of a caller."""

    front: Front
    client: httpx.AsyncClient
    caller: Caller = EVERYTHING
    conditions: Play = lambda adapter: [condition("Served"), condition("Ready")]
    """What the operator writes into a new adapter's status."""

    def known(self) -> list[str]:
        """Names of the LoraAdapters in the cluster."""
        prefix = f"{ADAPTERS.path(NAMESPACE)}/"
        return sorted(path.removeprefix(prefix) for path in self.front.small.objects if path.startswith(prefix))

    async def init(self, lora_id: str, **fields: JsonValue) -> httpx.Response:
        return await self.client.post("/v1/lora/init", json={"lora_id": lora_id, **fields})


def condition(kind: str, status: str = "True", reason: str = "Serving", message: str = "") -> dict[str, JsonValue]:
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }


@asynccontextmanager
async def scene(
    *servers: OpenAIServer, template: Path | None, control: str | None = "vllm-control"
) -> AsyncIterator[Scene]:
    async with front(*servers, control_secret=control) as gateway:
        services = replace(gateway.services, settings=replace(gateway.services.settings, adapter_template=template))
        app = FastAPI()
        handle_errors(app)
        app.include_router(router(services))

        async def admitted(scope, receive, send):  # type: ignore[no-untyped-def]
            scope[CALLER] = found.caller
            await app(scope, receive, send)

        transport = httpx.ASGITransport(admitted)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            found = Scene(gateway, client)
            operator = asyncio.create_task(play_operator(found))
            yield found
            operator.cancel()


async def play_operator(scene: Scene) -> None:
    """Write a status for each adapter that has none."""
    small = scene.front.small
    while True:
        for path, found in list(small.objects.items()):
            if path.startswith(f"{ADAPTERS.path(NAMESPACE)}/") and "status" not in found:
                written: list[JsonValue] = [*scene.conditions(found)]
                small.put(ADAPTERS, NAMESPACE, {**found, "status": {"conditions": written}})
        await asyncio.sleep(0.005)


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "template.yaml"
    spec = {**SPEC, "model": {"name": BASE, "source": {"hub": {"repository": "Qwen/Qwen3-8B"}}}}
    path.write_text(yaml.safe_dump({"namespace": NAMESPACE, "spec": spec}))
    return path


@pytest.fixture
def modal_template(template: Path) -> Path:
    document = yaml.safe_load(template.read_text())
    template.write_text(yaml.safe_dump({**document, "spec": {**document["spec"], **BY_MODAL}}))
    return template


async def test_an_app_on_modal_has_time_to_start_before_an_adapter_counts_as_failed(
    modal_template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(under_test, "INIT_SECONDS", 0.1)
    async with scene(template=modal_template) as found:
        asked = asyncio.create_task(found.init("acme/new"))
        found.conditions = lambda adapter: [condition("Served", "False", "NoReadyPods")]
        await asyncio.sleep(0.5)
        assert not asked.done()
        (name,) = set(found.known()) - {ADAPTER}
        made = found.front.small.found(ADAPTERS, NAMESPACE, name)
        serving = cast(Manifest, cast(Manifest, made["spec"])["serving"])
        assert serving == {**cast(Manifest, BY_MODAL["serving"]), "servedName": "acme-new"}
        found.front.small.put(ADAPTERS, NAMESPACE, {**made, "status": {"conditions": [condition("Served")]}})
        assert (await asked).json() == {"lora_id": "acme/new-init"}
        assert (await found.client.delete("/v1/lora", params={"lora_id": "acme/new"})).json() == {"deleted": True}


async def test_an_adapter_is_made_and_answers_by_all_its_names(template: Path) -> None:
    async with scene(template=template) as found:
        answer = await found.init("acme/new", base_model="Qwen/Qwen3-8B", target_modules=["q_proj", "v_proj"])
        assert (answer.status_code, answer.json()) == (200, {"lora_id": "acme/new-init"})
        (name,) = set(found.known()) - {ADAPTER}
        made = found.front.small.found(ADAPTERS, NAMESPACE, name)
        assert cast(Manifest, made["spec"])["loraId"] == "acme/new"
        directory = found.front.services.directory
        for asked in ("acme/new", "acme/new-init", "acme/new-latest", "acme-new", "acme-new-init", name):
            target = directory.resolve(asked, NAMESPACE)
            assert getattr(target, "name", None) == name


async def test_the_same_request_repeated_makes_nothing_new_and_another_one_conflicts(template: Path) -> None:
    async with scene(template=template) as found:
        assert (await found.init("acme/new")).status_code == 200
        again = await found.init("acme/new")
        assert (again.status_code, again.json()) == (200, {"lora_id": "acme/new-init"})
        assert len(found.known()) == 2
        for lora_id, fields in (("acme/new", {"lora_r": 8}), ("acme-new", {}), ("acme/new-init", {}), (BASE, {})):
            answer = await found.init(lora_id, **cast(dict[str, JsonValue], fields))
            assert answer.status_code == 409, lora_id
        assert len(found.known()) == 2


async def test_two_requests_at_a_time_for_one_name_make_one_adapter(template: Path) -> None:
    async with scene(template=template) as found:
        found.conditions = lambda adapter: []
        both = asyncio.gather(found.init("acme/new"), found.init("acme-new"))
        created = ("POST", ADAPTERS.path(NAMESPACE))
        await found.front.small.until(lambda: found.front.small.asked.count(created) == 2)
        for path, each in list(found.front.small.objects.items()):
            if path.startswith(f"{ADAPTERS.path(NAMESPACE)}/"):
                found.front.small.put(ADAPTERS, NAMESPACE, {**each, "status": {"conditions": [condition("Served")]}})
        assert sorted(answer.status_code for answer in await both) == [200, 409]
        assert len(found.known()) == 2


@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        ([("Ready", "False", "StorageNotMounted", "vLLM lacks it"), ("Stalled", "True", "StorageNotMounted", "")],
         "StorageNotMounted: vLLM lacks it"),
        ([("Ready", "False", "LoadFailed", "rank 64 is greater than max_lora_rank 16")], "rank 64 is greater"),
        ([("Ready", "False", "NoReadyPods", "no pod is ready")], "does not serve after"),
    ],
)  # fmt: skip
async def test_an_adapter_that_does_not_come_to_serve_is_removed_and_the_reason_told(
    template: Path, conditions: list[tuple[str, str, str, str]], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(under_test, "INIT_SECONDS", 0.3)
    monkeypatch.setattr("claas_gateway.adapters.serving_wait._LOAD_SECONDS", 0.0)
    async with scene(template=template) as found:
        found.conditions = lambda adapter: [condition(*each) for each in conditions]
        answer = await found.init("acme/new")
        assert answer.status_code == 500
        assert answer.json()["detail"].startswith("LoRA initialization failed: ")
        assert said in answer.json()["detail"]
        assert found.known() == [ADAPTER]


async def test_an_adapter_that_was_there_before_is_never_removed(
    template: Path,
) -> None:
    async with scene(template=template) as found:
        assert (await found.init("acme/new")).status_code == 200
        (name,) = set(found.known()) - {ADAPTER}
        made = found.front.small.found(ADAPTERS, NAMESPACE, name)
        stalled = [condition("Served", "False"), condition("Ready", "False", message="no pod"), condition("Stalled")]
        found.front.small.put(ADAPTERS, NAMESPACE, {**made, "status": {"conditions": [*stalled]}})
        await found.front.small.until(lambda: not is_served(found, name))
        answer = await found.init("acme/new")
        assert answer.status_code == 500
        assert "no pod" in answer.json()["detail"]
        assert name in found.known()


def is_served(scene: Scene, name: str) -> bool:
    adapter = scene.front.services.directory.adapter(NAMESPACE, name)
    return adapter is not None and is_true(adapter.found.status.conditions, "Served")


async def test_an_adapter_that_is_deleted_meanwhile_is_told(template: Path) -> None:
    async with scene(template=template) as found:
        found.conditions = lambda adapter: []
        asking = asyncio.create_task(found.init("new"))
        await found.front.small.until(lambda: found.front.services.directory.adapter(NAMESPACE, "new") is not None)
        found.front.small.remove(ADAPTERS, NAMESPACE, "new")
        answer = await asking
        assert "it was deleted meanwhile" in answer.json()["detail"]


async def test_what_kubernetes_refuses_is_told(template: Path) -> None:
    async with scene(template=template) as found:
        found.front.small.refuse = lambda method, path: (
            refusal(422, "spec.lora.rank: too large") if method == "POST" else None
        )
        answer = await found.init("acme/new")
        assert answer.status_code == 500
        assert "spec.lora.rank: too large" in answer.json()["detail"]


async def test_without_a_template_there_is_advice(template: Path) -> None:
    async with scene(template=None) as found:
        answer = await found.init("acme/new")
        assert answer.status_code == 501
        assert "gateway.adapterTemplate" in answer.json()["detail"]


async def test_values_out_of_bounds_are_named(template: Path) -> None:
    wrong: list[dict[str, JsonValue]] = [
        {"lora_r": 3},
        {"lora_r": 129},
        {"lora_alpha": 7},
        {"lora_alpha": 257},
        {"target_modules": []},
        {"lora_id": "a b"},
    ]
    async with scene(template=template) as found:
        for fields in wrong:
            answer = await found.client.post("/v1/lora/init", json={"lora_id": "acme/new", **fields})
            assert answer.status_code == 422, fields
            assert isinstance(answer.json()["detail"], list)


async def test_adapters_are_listed_by_their_aliases_within_what_the_key_sees(template: Path) -> None:
    async with scene(template=template) as found:
        await found.init("acme/new")

        async def listed(**query: str) -> list[str]:
            answer = (await found.client.get("/v1/lora", params=query)).json()["loras"]
            return cast(list[str], answer)

        mine = f"{NAMESPACE}/{ADAPTER}"
        assert await listed() == ["acme/new-init", "acme/new-latest", f"{mine}-init", f"{mine}-latest"]
        assert await listed(prefix="acme/new-l") == ["acme/new-latest"]
        assert await listed(prefix="../") == []
        found.caller = Caller("key", NAMESPACE, ADAPTER)
        assert await listed() == [f"{mine}-init", f"{mine}-latest"]
        found.caller = Caller("key", "other")
        assert await listed() == []


async def test_what_the_gateway_made_is_deleted_by_any_of_its_identifiers(template: Path) -> None:
    async with scene(template=template) as found:
        for lora_id in ("acme/new", "acme/new-init", "acme/new-latest"):
            await found.init("acme/new")
            answer = await found.client.delete("/v1/lora", params={"lora_id": lora_id})
            assert answer.json() == {"deleted": True}
            assert found.known() == [ADAPTER]
        await found.front.small.until(lambda: len(found.front.services.directory.adapters(None)) == 1)
        again = await found.client.delete("/v1/lora", params={"lora_id": "acme/new"})
        assert (again.status_code, again.json()) == (200, {"deleted": False})


async def test_nothing_else_is_deleted(template: Path) -> None:
    async with scene(template=template) as found:
        await found.init("acme/new")
        mine = {"lora_id": f"{NAMESPACE}/{ADAPTER}"}
        assert (await found.client.delete("/v1/lora", params=mine)).status_code == 403
        assert (await found.client.delete("/v1/lora")).status_code == 422
        for caller in (Caller("key", "other"), Caller("key", NAMESPACE, ADAPTER)):
            found.caller = caller
            answer = await found.client.delete("/v1/lora", params={"lora_id": "acme/new"})
            assert answer.json() == {"deleted": False}
        assert len(found.known()) == 2


@dataclass
class ExportingServer(OpenAIServer):
    """A vLLM server whose companion exports."""

    breaks_off: bool = False

    def extend(self, application: web.Application) -> None:
        application.router.add_get("/claas/adapters/{name}/export", self._export)

    async def _export(self, request: web.Request) -> web.StreamResponse:
        if not self.script.companion:
            return web.json_response({"detail": "Not Found"}, status=404)
        if request.match_info["name"] != ADAPTER:
            return web.json_response({"error": {"message": "not a served name"}}, status=404)
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as written:
            written.writestr("adapter_config.json", "{}")
        headers = {
            "Content-Type": "application/zip",
            "Content-Disposition": 'attachment; filename="coder-7.zip"',
            "X-Claas-Version": "coder@7",
        }
        answer = web.StreamResponse(headers=headers)
        await answer.prepare(request)
        data = archive.getvalue()
        await answer.write(data[:10])
        if not self.breaks_off:
            await answer.write(data[10:])
        elif request.transport is not None:
            request.transport.close()
        return answer


MINE = {"lora_id": f"{NAMESPACE}/{ADAPTER}-latest"}


async def test_an_export_is_passed_on_from_the_companion() -> None:
    async with scene(ExportingServer(), template=None) as found:
        answer = await found.client.get("/v1/lora/export", params=MINE)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/zip"
        assert answer.headers["x-claas-version"] == "coder@7"
        assert "coder-7.zip" in answer.headers["content-disposition"]
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            assert archive.namelist() == ["adapter_config.json"]


async def test_an_export_that_breaks_off_is_not_taken_for_whole() -> None:
    async with scene(ExportingServer(breaks_off=True), template=None) as found:
        with pytest.raises(aiohttp.ClientError):
            await found.client.get("/v1/lora/export", params=MINE)


@pytest.mark.parametrize("companion", [True, False])
async def test_without_the_companion_or_its_token_there_is_advice(companion: bool) -> None:
    server = ExportingServer(Script(companion=False))
    async with scene(server, template=None, control="vllm-control" if not companion else None) as found:
        answer = await found.client.get("/v1/lora/export", params=MINE)
        assert answer.status_code == 501
        assert "companion" in answer.json()["detail"]


async def test_an_adapter_that_is_unknown_or_not_seen_is_not_found() -> None:
    async with scene(ExportingServer(), template=None) as found:
        for caller, lora_id in ((EVERYTHING, "acme/none"), (Caller("key", "other"), MINE["lora_id"])):
            found.caller = caller
            answer = await found.client.get("/v1/lora/export", params={"lora_id": lora_id})
            assert answer.status_code == 404
            assert "LoRA not found" in answer.json()["detail"]
        assert (await found.client.get("/v1/lora/export")).status_code == 422


async def test_without_a_ready_pod_an_export_may_be_tried_again() -> None:
    async with scene(template=None) as found:
        answer = await found.client.get("/v1/lora/export", params=MINE)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "5"
