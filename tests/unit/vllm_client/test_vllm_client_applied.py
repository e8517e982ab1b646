"""A version that is loaded and not applied is seen, loaded again, and served only when that helped."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import httpx
import pytest
from pydantic import JsonValue

from claas_vllm_client import (
    AdapterNotApplied,
    ProbeSpec,
    Verification,
    VllmClient,
    loaded_version,
    put_in_service,
    verify_in_service,
)

PROBE = ProbeSpec("p")
BASE = "b"


@dataclass
class Server:
    """vLLM with the companion. `idle_loads`: how many of the next loads are not applied, so that the base answers."""

    idle_loads: int = 0
    adapters: dict[str, str] = field(default_factory=dict)
    idle: set[str] = field(default_factory=set)
    aliases: dict[str, dict[str, JsonValue]] = field(default_factory=dict)
    verified: set[str] = field(default_factory=set)
    strength: dict[str, float] = field(default_factory=dict)
    """By path: how far a version's answer is from the base's, in nats; 2 where nothing is said."""
    calls: list[str] = field(default_factory=list)
    most_logprobs: int = 20

    def wake(self, *, forgetting: bool) -> None:
        """What a wake does: `forgetting` is the fault that is looked for."""
        self.verified.clear()
        if forgetting:
            self.idle |= set(self.adapters)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        route = request.url.path
        document = json.loads(request.content) if request.content else {}
        self.calls.append(f"{route} {document.get('model', '')}".strip())
        if route == "/claas/models":
            cards = [{"id": name, "root": path, "parent": BASE} for name, path in self.adapters.items()]
            return httpx.Response(200, json={"data": [{"id": BASE, "root": "/b"}, *cards]})
        if route == "/v1/load_lora_adapter":
            name = document["lora_name"]
            self.adapters[name] = document["lora_path"]
            self.idle.discard(name)
            if self.idle_loads:
                self.idle_loads -= 1
                self.idle.add(name)
        elif route == "/v1/unload_lora_adapter":
            self.adapters.pop(document["lora_name"], None)
        elif route == "/v1/completions":
            return self._complete(document)
        elif route.startswith("/claas/aliases/"):
            name = route.removeprefix("/claas/aliases/")
            self.aliases[name] = document
            (self.verified.add if document.get("probe") else self.verified.discard)(name)
        return httpx.Response(200, json=self._status())

    def _complete(self, document: dict[str, JsonValue]) -> httpx.Response:
        model, asked = str(document["model"]), document["logprobs"]
        assert isinstance(asked, int)
        if asked > self.most_logprobs:
            return httpx.Response(400, json={"error": {"message": "too many logprobs"}})
        applied = model in self.adapters and model not in self.idle
        by = self.strength.get(self.adapters.get(model, ""), 2.0) if applied else 0.0
        likeliest = {"token_id:1": -1.0 - by, "token_id:2": -1.1 + by / 10}
        likeliest = dict(sorted(likeliest.items(), key=lambda item: -item[1])[:asked])
        chosen = max(likeliest, key=lambda token: likeliest[token])
        choice: JsonValue = {
            "text": "", "token_ids": [int(chosen.removeprefix("token_id:"))],
            "logprobs": {"token_logprobs": [likeliest[chosen]], "top_logprobs": [dict(likeliest)]},
        }  # fmt: skip
        return httpx.Response(200, json={"model": model, "choices": [choice]})

    def _status(self) -> dict[str, object]:
        aliases = [
            {"name": name, "loaded": alias["target"] in self.adapters, "verified": name in self.verified, **alias}
            for name, alias in self.aliases.items()
        ]
        return {
            "companion_version": "1", "vllm_version": "0.32.0", "supported_vllm_versions": ["0.32"],
            "vllm_supported": True, "aliases": aliases, "gpu_uuids": [], "persisted": True,
        }  # fmt: skip

    def client(self) -> VllmClient:
        return VllmClient("http://10.0.0.7:8000", transport=httpx.MockTransport(self))

    def answers_as_adapter(self, name: str) -> bool:
        target = str(self.aliases[name]["target"])
        return target in self.adapters and target not in self.idle


async def serve(server: Server, version: int) -> None:
    async with server.client() as client:
        await put_in_service(client, served_name="n", version=version, path=f"/v/{version}", probe=PROBE)


async def verify(server: Server) -> Verification:
    async with server.client() as client:
        return await verify_in_service(client, served_name="n", probe=PROBE)


async def test_after_a_wake_that_lost_the_adapter_it_is_loaded_again_and_nothing_in_service_is_unloaded_for_it() -> (
    None
):
    server = Server()
    await serve(server, 1)
    server.wake(forgetting=True)
    server.calls.clear()
    assert await verify(server) is Verification.RELOADED
    assert server.answers_as_adapter("n")
    assert "/v1/unload_lora_adapter" not in server.calls
    async with server.client() as client:
        served = await loaded_version(client, "n")
    assert served is not None
    assert (served.version, served.path) == (1, "/v/1")
    assert served.target.startswith("n@1-")
    server.wake(forgetting=True)
    assert await verify(server) is Verification.RELOADED
    assert server.aliases["n"]["target"] == "n@1"


async def test_after_a_wake_that_kept_the_adapter_it_is_asked_once_and_left_alone() -> None:
    server = Server()
    await serve(server, 1)
    remembered = server.aliases["n"]
    server.wake(forgetting=False)
    server.calls.clear()
    assert await verify(server) is Verification.ANSWERED
    assert server.calls.count("/v1/load_lora_adapter") == 0
    assert server.aliases["n"] == remembered
    server.calls.clear()
    assert await verify(server) is Verification.NOTHING_TO_DO
    assert server.calls == ["/claas/status"]


async def test_an_adapter_that_loading_again_does_not_help_is_told_and_what_was_loaded_for_it_is_unloaded() -> None:
    server = Server()
    await serve(server, 1)
    server.wake(forgetting=True)
    server.idle_loads = 9
    with pytest.raises(AdapterNotApplied, match="not applied"):
        await verify(server)
    assert set(server.adapters) == {"n@1"}
    assert server.verified == set()
    server.idle_loads = 0
    assert await verify(server) is Verification.RELOADED


@pytest.mark.parametrize("version", [0, 1], ids=["version 0", "a version that hardly moved"])
async def test_a_version_that_answers_as_the_base_does_is_no_fault(version: int) -> None:
    server = Server(strength={f"/v/{version}": 0.0 if version == 0 else 0.01})
    await serve(server, version)
    server.wake(forgetting=False)
    assert await verify(server) is Verification.ANSWERED


async def test_a_successor_that_is_not_applied_does_not_replace_its_parent() -> None:
    server = Server()
    await serve(server, 1)
    server.idle_loads = 9
    with pytest.raises(AdapterNotApplied):
        await serve(server, 2)
    assert server.aliases["n"]["target"] == "n@1"
    assert set(server.adapters) == {"n@1"}
    server.idle_loads = 1
    await serve(server, 2)
    assert server.aliases["n"]["target"] == "n@2"
    assert server.answers_as_adapter("n")


async def test_an_adapter_made_anew_may_answer_as_the_base_under_the_name_of_one_that_did_not() -> None:
    server = Server(strength={"/new/0": 0.0, "/v/3": 0.0})
    await serve(server, 1)
    async with server.client() as client:
        await put_in_service(client, served_name="n", version=0, path="/new/0", probe=PROBE)
    assert server.aliases["n"]["path"] == "/new/0"
    await serve(server, 2)
    await serve(server, 4)


async def test_a_version_that_was_lost_with_its_server_is_held_against_what_it_answered_before() -> None:
    server = Server()
    await serve(server, 1)
    remembered = server.aliases["n"]
    server.adapters.clear()
    server.idle_loads = 9
    with pytest.raises(AdapterNotApplied):
        await serve(server, 1)
    server.idle_loads = 0
    await serve(server, 1)
    assert server.aliases["n"] == remembered


async def test_another_probe_is_remembered_anew() -> None:
    server = Server()
    await serve(server, 1)
    server.wake(forgetting=True)
    async with server.client() as client:
        found = await verify_in_service(client, served_name="n", probe=ProbeSpec("another"))
    assert found is Verification.ANSWERED


async def test_a_server_that_gives_few_log_probabilities_is_asked_for_fewer() -> None:
    server = Server(most_logprobs=1)
    await serve(server, 1)
    assert server.answers_as_adapter("n")
