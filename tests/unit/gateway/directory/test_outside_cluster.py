"""That an adapter whose vLLM is outside the cluster has one server, is there while its app sleeps, and that nothing
asks the app of its own accord: each request starts a container that somebody pays."""

from __future__ import annotations

import asyncio
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
from aiohttp import web

from claas_gateway.directory.models import Server
from claas_gateway.upstream import pods
from claas_kube.objects.meta import Manifest
from claas_kube.resources import ADAPTERS, DEPLOYMENTS, PODS
from tests.builders.front import ADAPTER, BASE, NAMESPACE, adapter
from tests.builders.modal.front import BY_MODAL, modal_front, place_tokens
from tests.builders.modal.server import ModalServer
from tests.builders.whole_gateway import WholeGateway, whole_gateway
from tests.simulation.openai_server import Script

OTHER_SERVER: Manifest = {**BY_MODAL, "serving": {"modalApp": {"app": "claas-vllm", "server": "Larger"}}}


@dataclass
class ExportingServer(ModalServer):
    """A vLLM on Modal whose companion exports."""

    def more(self, application: web.Application) -> None:
        application.router.add_get("/claas/adapters/{name}/export", self._export)

    async def _export(self, request: web.Request) -> web.Response:
        self._note(request, {})
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as written:
            written.writestr("adapter_config.json", "{}")
        return web.Response(body=archive.getvalue(), content_type="application/zip")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pods, "AGAIN_SECONDS", 0.02)
    monkeypatch.setattr(pods, "LONGEST_PAUSE_SECONDS", 0.1)


@pytest.mark.parametrize(
    ("url", "found"),
    [
        (None, None),
        ("https://team--claas-vllm.modal.direct", "https://team--claas-vllm.modal.direct"),
        ("https://team.modal.direct/", "https://team.modal.direct"),
        ("http://127.0.0.1:8000/vllm", "http://127.0.0.1:8000/vllm"),
        ("ftp://team.modal.direct", None),
        ("team.modal.direct", None),
        ("https://", None),
        ("https://[broken", None),
        ("https://team.modal.direct?x=1", None),
    ],
)
async def test_an_adapter_has_one_server_at_its_address(url: str | None, found: str | None) -> None:
    async with modal_front(ModalServer()) as made:
        directory = made.services.directory
        one = made.small.found(ADAPTERS, NAMESPACE, ADAPTER)
        made.small.put(ADAPTERS, NAMESPACE, {**one, "status": {"servingUrl": url}})
        await made.small.until(lambda: directory.adapters(None)[0].found.status.serving_url == url)
        servers = directory.servers(directory.adapters(None)[0].servers)
        expected = (
            [Server(NAMESPACE, "modal:claas-vllm", f"{NAMESPACE}/{found}", found, True, False, True)] if found else []
        )
        assert list(servers) == expected


async def test_no_deployment_and_no_pod_is_looked_for() -> None:
    async with modal_front(ModalServer()) as made:
        asked = made.small.counted()
        for kind in (DEPLOYMENTS, PODS):
            assert not [each for each in asked if kind.plural in each]


async def test_the_base_model_is_answered_by_an_app_whose_address_is_known() -> None:
    async with modal_front(ModalServer()) as made:
        directory = made.services.directory
        for name, spec in (("a-new-one", BY_MODAL), ("another", OTHER_SERVER)):
            made.small.put(ADAPTERS, NAMESPACE, adapter(name, spec=spec))
        await made.small.until(lambda: len(directory.adapters(None)) == 3)
        assert directory.base_models(NAMESPACE) == [BASE]
        (server,) = directory.servers(directory.resolve(None, NAMESPACE).servers)
        assert server.ready


async def test_nothing_asks_the_app_until_a_client_does(tmp_path: Path) -> None:
    server = ModalServer(cold=1)
    async with whole_gateway(tmp_path, names={ADAPTER: BY_MODAL}, server=server) as whole:
        place_tokens(whole.small)
        for path in ("/v1/health", "/readyz", "/v1/models", "/v1/lora", "/v1/dashboard", f"/v1/dashboard/{ADAPTER}"):
            await whole.send("GET", path)
        one = whole.small.found(ADAPTERS, NAMESPACE, ADAPTER)
        whole.small.put(ADAPTERS, NAMESPACE, {**one, "status": {**cast(Manifest, one["status"]), "servedVersion": 7}})
        await asyncio.sleep(0.5)
        assert server.came == []
        await chat(whole)
        assert server.came == ["/v1/chat/completions"] * 2


async def test_feedback_asks_the_app_its_prompts_again_once_and_never_whether_it_is_there(tmp_path: Path) -> None:
    server = ModalServer(Script(version="coder@8"))
    async with whole_gateway(tmp_path, names={ADAPTER: BY_MODAL}, server=server, REPLAYS_PER_BATCH="1") as whole:
        place_tokens(whole.small)
        rollout = await chat(whole)
        given: Manifest = {"lora_id": f"{NAMESPACE}/{ADAPTER}", "rollout_id": rollout, "feedback": "Shorter, please."}
        status, _, _ = await whole.send("POST", "/v1/feedback", {"requests": [given]})
        assert status == 200
        await whole.small.until(lambda: len(server.came) == 2)
        await asyncio.sleep(0.3)
        assert server.came == ["/v1/chat/completions"] * 2


async def test_an_app_without_an_address_is_told_by_health_and_waited_for(tmp_path: Path) -> None:
    server = ModalServer()
    async with whole_gateway(tmp_path, names={ADAPTER: BY_MODAL}, server=server) as whole:
        place_tokens(whole.small)
        one = whole.small.found(ADAPTERS, NAMESPACE, ADAPTER)
        directory = whole.services.directory
        whole.small.put(ADAPTERS, NAMESPACE, {**one, "status": {}})
        await whole.small.until(lambda: directory.adapters(None)[0].found.status.serving_url is None)
        _, told, _ = await whole.send("GET", "/v1/health")
        assert cast(Manifest, told["worker"])["error"] == "1 of 1 adapters on Modal have no server yet"
        asked = asyncio.create_task(chat(whole))
        await asyncio.sleep(0.1)
        assert not asked.done()
        whole.small.put(ADAPTERS, NAMESPACE, one)
        assert await asked


async def test_an_export_waits_until_a_container_is_there(tmp_path: Path) -> None:
    server = ExportingServer(cold=3)
    async with whole_gateway(tmp_path, names={ADAPTER: BY_MODAL}, server=server) as whole:
        place_tokens(whole.small)
        at = f"{whole.url}/v1/lora/export"
        async with whole.http.get(at, params={"lora_id": f"{NAMESPACE}/{ADAPTER}"}) as answer:
            assert answer.status == 200
            with zipfile.ZipFile(io.BytesIO(await answer.read())) as archive:
                assert archive.namelist() == ["adapter_config.json"]
        assert len(server.came) == 4
        assert server.headers[-1]["x-claas-token"]
        assert server.headers[-1]["modal-key"]


async def test_an_export_of_an_app_that_never_starts_says_so(tmp_path: Path) -> None:
    server = ExportingServer(cold=1000)
    async with whole_gateway(tmp_path, names={ADAPTER: BY_MODAL}, server=server, COLD_START_SECONDS="0.3") as whole:
        place_tokens(whole.small)
        status, told, headers = await whole.send("GET", f"/v1/lora/export?lora_id={NAMESPACE}/{ADAPTER}")
        assert (status, headers["Retry-After"]) == (503, "5")
        assert "may be starting" in str(told["detail"])


async def chat(whole: WholeGateway) -> str:
    """The rollout of an answer."""
    body: Manifest = {"model": ADAPTER, "messages": [{"role": "user", "content": "hi"}]}
    status, told, headers = await whole.send("POST", "/v1/chat/completions", body)
    assert status == 200, told
    return headers["X-Claas-Rollout"]
