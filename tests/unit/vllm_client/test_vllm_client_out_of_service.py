"""Taking a name out of service takes everything that was loaded for it, and nothing else."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import httpx

from claas_vllm_client import VllmClient, take_out_of_service
from claas_vllm_client.loading import versions_of
from claas_vllm_client.wire import ServedModel

BASE = "base"


@dataclass
class Server:
    """vLLM, with the companion when it has aliases; what is unloaded is kept in order."""

    adapters: list[str]
    aliases: dict[str, str] | None = None
    unloaded: list[str] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        route = request.url.path
        if route.startswith("/claas/") and self.aliases is None:
            return httpx.Response(404, json={})
        if route in ("/claas/models", "/v1/models"):
            cards = [{"id": name, "root": f"/v/{name}", "parent": BASE} for name in self.adapters]
            return httpx.Response(200, json={"data": [{"id": BASE, "root": "/b"}, *cards]})
        if route == "/v1/unload_lora_adapter":
            name = json.loads(request.content)["lora_name"]
            self.adapters.remove(name)
            self.unloaded.append(name)
            return httpx.Response(200, text="Success")
        if request.method == "DELETE" and self.aliases is not None:
            gone = self.aliases.pop(route.removeprefix("/claas/aliases/"), None)
            missing = {"error": {"message": "tone is not a served name", "type": "NotFoundError", "code": 404}}
            return httpx.Response(200, json=self._status()) if gone else httpx.Response(404, json=missing)
        return httpx.Response(200, json=self._status())

    def _status(self) -> dict[str, object]:
        aliases = [
            {"name": name, "target": target, "path": f"/v/{target}", "version": 1, "loaded": True}
            for name, target in (self.aliases or {}).items()
        ]
        return {
            "companion_version": "1", "vllm_version": "0.32.0", "supported_vllm_versions": ["0.32"],
            "vllm_supported": True, "aliases": aliases, "gpu_uuids": [], "persisted": True,
        }  # fmt: skip

    async def take_out(self, name: str) -> bool:
        transport = httpx.MockTransport(self)
        async with VllmClient("http://10.0.0.7:8000", control_token="t", transport=transport) as client:
            return await take_out_of_service(client, served_name=name)


async def test_a_version_that_was_loaded_and_never_served_goes_too() -> None:
    server = Server(["tone@1", "tone@2", "tone-2@2", "tones@1"], {"tone": "tone@1", "tones": "tones@1"})
    assert await server.take_out("tone")
    # What the name pointed at is the companion's to unload, when nobody is answered by it any more.
    assert server.unloaded == ["tone@2"]
    assert server.aliases == {"tones": "tones@1"}


async def test_a_name_that_never_came_into_service_leaves_nothing_behind() -> None:
    server = Server(["tone@0", "tone@0-0a1b2c3d"], {})
    assert await server.take_out("tone")
    assert server.adapters == []
    assert not await server.take_out("tone")


async def test_without_a_companion_the_name_and_its_remnants_are_unloaded() -> None:
    server = Server(["tone", "tone@3"])
    assert await server.take_out("tone")
    assert server.adapters == []


def test_versions_of_a_name_are_told_from_those_of_names_like_it() -> None:
    names = ["a.b@1", "a.b@12-00ff00ff", "axb@1", "a.b@x", "a.b", "a.b@1-zz"]
    models = [ServedModel(id=name, root="/v", parent=BASE) for name in names]
    assert versions_of(models, "a.b") == ["a.b@1", "a.b@12-00ff00ff"]
