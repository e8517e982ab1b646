"""The companion and the client against the real vLLM on the CPU, with a random tiny Qwen3."""

import asyncio
import io
import json
import time
import zipfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from claas_vllm_client import (
    AdapterNotApplied,
    AdapterRejected,
    AliasRejected,
    DrainTimedOut,
    LoadOutcome,
    PauseMode,
    ProbeFailed,
    ProbeSpec,
    Refused,
    SleepState,
    SwapMethod,
    Verification,
    VllmClient,
    ensure_awake,
    loaded_version,
    pause_serving,
    put_in_service,
    resume_serving,
    take_out_of_service,
    verify_in_service,
)
from tests.builders.models import build_adapter, silence_adapter, spoil_adapter
from tests.contract.site import API_KEY, TOKEN, VERSIONS, Site
from tests.contract.vllm_server import BASE_MODEL

pytestmark = pytest.mark.contract

NAME = "user123/coder-v1"
CLIENTS = 8
PROBE = ProbeSpec("The colour of the sky is", max_tokens=4)
# For what has to happen within an answer: a swap, a pause. No machine writes this one to its end before that; the
# test stops reading it instead.
ENDLESS_ANSWER_TOKENS = 16_000
HEADERS = {"Authorization": f"Bearer {API_KEY}"}


@pytest.fixture
async def client(site: Site) -> AsyncIterator[VllmClient]:
    async with VllmClient(site.server.url, control_token=TOKEN, api_key=API_KEY, timeout_seconds=60.0) as client:
        yield client
        await ensure_awake(client)


@dataclass
class Answer:
    """A greedy streamed answer: its tokens, which version gave it, and how it ended."""

    token_ids: list[int] = field(default_factory=list)
    version: str = ""
    finish_reason: str = ""
    grown: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def goes_on(self, tokens: int = 20) -> None:
        """Wait until that many more tokens have come."""
        wanted = len(self.token_ids) + tokens
        async with asyncio.timeout(60.0), self.grown:
            await self.grown.wait_for(lambda: len(self.token_ids) >= wanted)

    async def stands_still(self) -> int:
        """Wait until what is on its way has come: for 0.3 s no more tokens. Returns how many there are."""
        async with asyncio.timeout(60.0):
            while True:
                before = len(self.token_ids)
                await asyncio.sleep(0.3)
                if len(self.token_ids) == before:
                    return before


async def stream_answer(site: Site, model: str, answer: Answer, max_tokens: int = ENDLESS_ANSWER_TOKENS) -> None:
    body = {
        "model": model, "prompt": "Once upon a time", "max_tokens": max_tokens, "temperature": 0.0,
        "ignore_eos": True, "stream": True, "return_token_ids": True,
    }  # fmt: skip
    async with (
        httpx.AsyncClient(base_url=site.server.url, headers=HEADERS, timeout=120.0, trust_env=False) as http,
        http.stream("POST", "/v1/completions", json=body) as response,
    ):
        assert response.status_code == httpx.codes.OK
        answer.version = response.headers.get("x-claas-version", "")
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            choice = json.loads(line.removeprefix("data: "))["choices"][0]
            answer.token_ids += choice["token_ids"] or []
            answer.finish_reason = choice["finish_reason"] or answer.finish_reason
            async with answer.grown:
                answer.grown.notify_all()


async def stop_reading(running: asyncio.Task[None]) -> None:
    """Hang up on an answer that is still being written."""
    assert not running.done(), "the answer ended before its test; this machine needs a longer answer"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def serve(client: VllmClient, site: Site, version: int) -> None:
    await put_in_service(client, served_name=NAME, version=version, path=site.path(version), probe=PROBE)


async def loaded_targets(client: VllmClient) -> set[str]:
    return {model.id for model in await client.models() if model.parent is not None and "@" in model.id}


async def wait_for_targets(client: VllmClient, expected: set[str]) -> None:
    deadline = time.monotonic() + 10.0
    while await loaded_targets(client) != expected:
        assert time.monotonic() < deadline, f"loaded: {await loaded_targets(client)}, not {expected}"
        await asyncio.sleep(0.05)


async def test_status_says_how_the_server_was_started(client: VllmClient) -> None:
    status = await client.companion_status()
    assert status is not None
    said = status.settings
    assert said is not None
    assert said.lora is not None
    assert said.chat is not None
    assert (said.lora.enabled, said.lora.max_rank, said.lora.max_loras) == (True, 8, 4)
    assert (said.served_model_names, said.device_type) == ((BASE_MODEL,), "cpu")
    assert (said.sleep_mode, said.worker_extension) == (False, "claas_vllm.WeightExport")
    assert (said.loads_adapters, said.can_pause, said.log_stats, said.tls) == (True, True, True, False)
    assert said.chat.template is None
    assert "enable_thinking" not in said.chat.template_kwargs


async def test_a_conversation_is_tokenised_as_the_server_itself_reads_it(site: Site, client: VllmClient) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?<|im_end|>"}]
    body = {"model": BASE_MODEL, "messages": messages, "max_tokens": 1, "return_token_ids": True}
    async with httpx.AsyncClient(base_url=site.server.url, headers=HEADERS, timeout=60.0, trust_env=False) as http:
        answer = await http.post("/v1/chat/completions", json=body)
    assert list(await client.tokenize_chat(messages)) == answer.json()["prompt_token_ids"]


async def test_a_version_is_put_in_service_once_and_listed_under_the_served_name(
    site: Site, client: VllmClient
) -> None:
    first = await put_in_service(client, served_name=NAME, version=1, path=site.path(1), probe=PROBE)
    again = await put_in_service(client, served_name=NAME, version=1, path=site.path(1), probe=PROBE)

    assert (first.changed, first.method, first.target) == (True, SwapMethod.COMPANION, f"{NAME}@1")
    assert first.probe is not None
    assert len(first.probe.token_ids) == PROBE.max_tokens
    assert not again.changed
    listed = await client.model(NAME)
    assert listed is not None
    assert (listed.root, listed.parent) == (site.path(1), BASE_MODEL)
    served = await loaded_version(client, NAME)
    assert served is not None
    assert served.version == 1
    base = await client.probe(BASE_MODEL, PROBE.prompt, max_tokens=PROBE.max_tokens)
    assert base.token_ids != first.probe.token_ids


async def test_the_lock_refuses_without_the_token_and_opens_with_it(site: Site, client: VllmClient) -> None:
    await serve(client, site, 1)
    async with VllmClient(site.server.url, api_key=API_KEY) as outsider:
        for refused in (
            outsider.sleep(mode=PauseMode.ABORT),
            outsider.wake_up(),
            outsider.is_sleeping(),
            outsider.load_adapter("stranger", site.path(2)),
            outsider.unload_adapter(f"{NAME}@1"),
            outsider.companion_status(),
            outsider.delete_alias(NAME),
        ):
            with pytest.raises(Refused):
                await refused
        assert (await outsider.probe(NAME, PROBE.prompt)).answered_by == f"{NAME}@1"
        assert await outsider.health()
    async with VllmClient(site.server.url, control_token=TOKEN) as keyless:
        with pytest.raises(Refused):
            await keyless.load_adapter("stranger", site.path(2))
    assert not await client.is_sleeping()
    status = await client.companion_status()
    assert status is not None
    assert status.vllm_supported
    assert status.persisted


async def test_every_route_of_this_vllm_that_is_not_a_clients_is_locked(site: Site) -> None:
    async with httpx.AsyncClient(base_url=site.server.url, headers=HEADERS, trust_env=False) as http:
        document = (await http.get("/openapi.json")).json()
        open_routes = set()
        for path, methods in document["paths"].items():
            for method in methods:
                # An unlocked control route would act on this: it only ever carries an empty body.
                answer = await http.request(method, path.replace("{", "").replace("}", ""), json={})
                if answer.status_code != httpx.codes.FORBIDDEN:
                    open_routes.add(path)
    assert {"/sleep", "/collective_rpc", "/v1/load_lora_adapter"} <= set(document["paths"]) - open_routes
    assert {"/health", "/metrics", "/v1/models", "/v1/completions", "/v1/chat/completions"} <= open_routes
    assert open_routes <= {
        "/health", "/load", "/version", "/kv_event_sources", "/metrics", "/ping", "/invocations", "/tokenize",
        "/detokenize", "/tokenizer_info", "/v1/models", "/v1/systemone", "/v1/decisions", "/v1/chat/completions",
        "/v1/chat/completions/batch", "/v1/completions", "/v1/messages", "/v1/messages/count_tokens",
        "/v1/responses", "/v1/responses/{response_id}", "/v1/responses/{response_id}/cancel",
        "/inference/v1/generate", "/generative_scoring", "/cohere/v2/chat",
    }  # fmt: skip


async def test_no_request_fails_in_fifty_swaps_under_eight_clients(site: Site, client: VllmClient) -> None:
    await serve(client, site, 1)
    stop = asyncio.Event()
    answered: list[int] = []
    failures: list[str] = []

    async def chat(number: int) -> None:
        body = {
            "model": NAME,
            "messages": [{"role": "user", "content": f"question {number}"}],
            "max_tokens": 8,
            "temperature": 0.0,
            "stream": number % 2 == 0,
        }
        last = 0
        async with httpx.AsyncClient(
            base_url=site.server.url, headers=HEADERS, timeout=60.0, trust_env=False
        ) as http:
            while not stop.is_set():
                response = await http.post("/v1/chat/completions", json=body)
                version = int(response.headers.get("x-claas-version", "@0").split("@")[1])
                if response.status_code != httpx.codes.OK or '"error"' in response.text:
                    failures.append(f"HTTP {response.status_code}")
                elif version < last or f'"model":"{NAME}"' not in response.text or f"{NAME}@" in response.text:
                    failures.append(f"version {version} after {last}")
                elif '"finish_reason":"length"' not in response.text:
                    failures.append(f"cut short by version {version}")
                else:
                    last = version
                    answered.append(version)

    clients = [asyncio.create_task(chat(number)) for number in range(CLIENTS)]
    for version in range(2, VERSIONS + 1):
        await put_in_service(client, served_name=NAME, version=version, path=site.path(version), probe=None)
        await asyncio.sleep(0.05)
    await serve(client, site, 1)
    await serve(client, site, VERSIONS)
    stop.set()
    await asyncio.gather(*clients)

    # The way back to version 1 is the one step down that a client may see.
    assert [failure for failure in failures if failure != f"version 1 after {VERSIONS}"] == []
    assert len(answered) > 2 * VERSIONS
    assert len(set(answered)) > VERSIONS // 2
    await wait_for_targets(client, {f"{NAME}@{VERSIONS}"})


async def test_a_request_in_flight_goes_on_with_the_version_it_began_with(site: Site, client: VllmClient) -> None:
    await serve(client, site, 3)
    answer = Answer()
    running = asyncio.create_task(stream_answer(site, NAME, answer))
    await answer.goes_on(5)

    await serve(client, site, 4)
    status = await client.companion_status()
    new = await client.probe(NAME, PROBE.prompt)
    await answer.goes_on()
    await stop_reading(running)
    await wait_for_targets(client, {f"{NAME}@4"})
    await serve(client, site, 3)
    undisturbed = Answer()
    await stream_answer(site, NAME, undisturbed, len(answer.token_ids))

    assert status is not None
    alias = status.alias(NAME)
    assert alias is not None
    assert alias.in_flight == {f"{NAME}@4": 0, f"{NAME}@3": 1}
    assert new.answered_by == f"{NAME}@4"
    assert answer.version == undisturbed.version == f"{NAME}@3"
    assert answer.token_ids == undisturbed.token_ids


async def test_an_answer_frozen_by_sleep_has_the_tokens_of_an_undisturbed_one(site: Site, client: VllmClient) -> None:
    await serve(client, site, 5)
    frozen = Answer()
    running = asyncio.create_task(stream_answer(site, NAME, frozen))
    await frozen.goes_on(5)

    await pause_serving(client, mode=PauseMode.KEEP)
    assert (await client.load()).sleep_state is SleepState.WEIGHTS_OFFLOADED
    tokens_when_asleep = await frozen.stands_still()
    arriving = asyncio.create_task(client.probe(NAME, PROBE.prompt, max_tokens=2))
    await asyncio.sleep(0.5)
    assert not arriving.done()
    assert len(frozen.token_ids) == tokens_when_asleep
    await resume_serving(client)
    await frozen.goes_on()
    await stop_reading(running)
    undisturbed = Answer()
    await stream_answer(site, NAME, undisturbed, len(frozen.token_ids))

    assert frozen.token_ids == undisturbed.token_ids
    assert (await arriving).answered_by == f"{NAME}@5"
    assert not await ensure_awake(client)


async def test_a_drain_that_times_out_resumes_and_leaves_nothing_asleep(site: Site, client: VllmClient) -> None:
    await serve(client, site, 5)
    answer = Answer()
    running = asyncio.create_task(stream_answer(site, NAME, answer))
    await answer.goes_on(5)

    with pytest.raises(DrainTimedOut):
        await pause_serving(client, mode=PauseMode.WAIT, drain_timeout_seconds=0.2)
    assert not await client.is_paused()
    await answer.goes_on()
    await stop_reading(running)

    # The engine is idle now: a drain left behind in it would put it to sleep at this point.
    await asyncio.sleep(0.5)
    assert (await client.load()).running == 0
    assert not await client.is_sleeping()
    assert (await client.probe(NAME, PROBE.prompt)).answered_by == f"{NAME}@5"


async def test_a_drain_lets_the_running_answer_end_and_then_sleeps(site: Site, client: VllmClient) -> None:
    await serve(client, site, 5)
    answer = Answer()
    running = asyncio.create_task(stream_answer(site, NAME, answer, max_tokens=100))
    await answer.goes_on(5)

    await pause_serving(client, mode=PauseMode.WAIT, drain_timeout_seconds=60.0)
    await asyncio.wait_for(running, 5.0)
    assert answer.finish_reason == "length"
    assert (await client.load()).sleep_state is SleepState.WEIGHTS_OFFLOADED
    assert await ensure_awake(client)
    assert (await client.load()).sleep_state is SleepState.AWAKE


async def test_a_version_that_does_not_load_or_answer_leaves_the_old_one_in_service(
    site: Site, client: VllmClient
) -> None:
    await serve(client, site, 6)
    too_wide = build_adapter(site.server.model, site.root / "wide" / "7", seed=7, rank=16)

    with pytest.raises(AdapterRejected, match="missing"):
        await put_in_service(client, served_name=NAME, version=7, path=str(site.root / "missing" / "7"), probe=PROBE)
    with pytest.raises(AdapterRejected, match="max-lora-rank"):
        await put_in_service(client, served_name=NAME, version=7, path=str(too_wide), probe=PROBE)
    with pytest.raises(AliasRejected, match="not a loaded adapter"):
        await client.set_alias(NAME, target=f"{NAME}@7", path=site.path(7), version=7)
    with pytest.raises(AliasRejected, match="base model"):
        await client.set_alias(BASE_MODEL, target=f"{NAME}@6", path=site.path(6), version=6)

    assert (await client.probe(NAME, PROBE.prompt)).answered_by == f"{NAME}@6"
    await wait_for_targets(client, {f"{NAME}@6"})


async def test_loading_what_is_loaded_is_a_success_and_a_taken_name_is_not(site: Site, client: VllmClient) -> None:
    assert await client.load_adapter("twice@8", site.path(8)) is LoadOutcome.LOADED
    assert await client.load_adapter("twice@8", site.path(8) + "/") is LoadOutcome.ALREADY_LOADED
    with pytest.raises(AdapterRejected, match="taken"):
        await client.load_adapter("twice@8", site.path(9))
    assert await client.unload_adapter("twice@8")
    assert not await client.unload_adapter("twice@8")


class _NoCompanion(httpx.AsyncHTTPTransport):
    """The server as it is without the companion, for clients: its routes are not there."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.startswith("/claas/"):
            return httpx.Response(404, json={"detail": "Not Found"}, request=request)
        return await super().handle_async_request(request)


async def test_without_the_companion_versions_are_swapped_by_vllms_own_routes(site: Site) -> None:
    name = "plain"
    async with VllmClient(
        site.server.url, control_token=TOKEN, api_key=API_KEY, timeout_seconds=60.0, transport=_NoCompanion()
    ) as client:
        assert await loaded_version(client, name) is None
        answers = set()
        for version in (9, 10):
            outcome = await put_in_service(
                client, served_name=name, version=version, path=site.path(version), probe=PROBE
            )
            again = await put_in_service(
                client, served_name=name, version=version, path=site.path(version), probe=PROBE
            )
            served = await loaded_version(client, name)
            answer = await client.probe(name, PROBE.prompt, max_tokens=PROBE.max_tokens)

            assert (outcome.changed, outcome.method, again.changed) == (True, SwapMethod.VLLM_ROUTES, False)
            assert served is not None
            assert (served.version, served.path) == (version, site.path(version))
            assert outcome.probe is not None
            assert answer.token_ids == outcome.probe.token_ids
            answers.add(answer.token_ids)
        assert len(answers) == 2
        with pytest.raises(AdapterRejected):
            await put_in_service(client, served_name=name, version=99, path="/nowhere/versions/99", probe=None)
        still = await loaded_version(client, name)
        assert still is not None
        assert still.version == 10
        assert await take_out_of_service(client, served_name=name)
        assert not await take_out_of_service(client, served_name=name)
        assert await client.model(name) is None


async def test_a_version_that_the_server_does_not_apply_is_seen_after_a_wake_and_loaded_again(
    site: Site, client: VllmClient
) -> None:
    name = "doubted"
    # A file that changes nothing answers as a version that vLLM has lost does.
    folder = build_adapter(site.server.model, site.root / "doubted" / "versions" / "1", seed=13)
    weights = (folder / "adapter_model.safetensors").read_bytes()
    await put_in_service(client, served_name=name, version=1, path=str(folder), probe=PROBE)
    await pause_serving(client)
    await resume_serving(client)
    assert await verify_in_service(client, served_name=name, probe=PROBE) is Verification.ANSWERED
    assert await verify_in_service(client, served_name=name, probe=PROBE) is Verification.NOTHING_TO_DO

    silence_adapter(folder)
    await client.unload_adapter(f"{name}@1")
    await client.load_adapter(f"{name}@1", str(folder))
    await client.wake_up()
    with pytest.raises(AdapterNotApplied):
        await verify_in_service(client, served_name=name, probe=PROBE)
    (folder / "adapter_model.safetensors").write_bytes(weights)
    assert await verify_in_service(client, served_name=name, probe=PROBE) is Verification.RELOADED

    answer = await client.probe(name, PROBE.prompt, max_tokens=PROBE.max_tokens)
    base = await client.probe(BASE_MODEL, PROBE.prompt, max_tokens=PROBE.max_tokens)
    assert answer.answered_by.startswith(f"{name}@1-")
    assert answer.likeliest != base.likeliest
    assert await take_out_of_service(client, served_name=name)


async def test_a_version_zero_answers_as_the_base_exactly_and_is_no_fault(site: Site, client: VllmClient) -> None:
    folder = build_adapter(site.server.model, site.root / "fresh" / "versions" / "0", seed=14)
    silence_adapter(folder)
    await put_in_service(client, served_name="fresh", version=0, path=str(folder), probe=PROBE)
    await client.wake_up()
    assert await verify_in_service(client, served_name="fresh", probe=PROBE) is Verification.ANSWERED
    answer = await client.probe("fresh", PROBE.prompt, max_tokens=PROBE.max_tokens)
    base = await client.probe(BASE_MODEL, PROBE.prompt, max_tokens=PROBE.max_tokens)
    assert (answer.token_ids, answer.likeliest) == (base.token_ids, base.likeliest)
    assert await take_out_of_service(client, served_name="fresh")


async def test_clients_read_the_name_they_asked_for_and_learn_of_no_version(site: Site, client: VllmClient) -> None:
    await serve(client, site, 2)
    async with httpx.AsyncClient(base_url=site.server.url, headers=HEADERS, timeout=60.0, trust_env=False) as http:
        listed = [card["id"] for card in (await http.get("/v1/models")).json()["data"]]
        body = {"model": NAME, "prompt": "Hello", "max_tokens": 3, "temperature": 0.0}
        whole = await http.post("/v1/completions", json=body)
        streamed = await http.post("/v1/completions", json={**body, "stream": True})
        chat = {"model": NAME, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3, "stream": True}
        chunks = await http.post("/v1/chat/completions", json=chat)
        response = await http.post("/v1/responses", json={"model": NAME, "input": "Hello", "max_output_tokens": 3})
        missing = await http.post("/v1/completions", json={**body, "model": "nope"})
    assert listed == [BASE_MODEL, NAME]
    for answer in (whole, streamed, chunks, response):
        assert answer.status_code == httpx.codes.OK
        assert answer.headers["x-claas-version"] == f"{NAME}@2"
        assert f'"model":"{NAME}"' in answer.text
        assert f"{NAME}@2" not in answer.text
    assert missing.status_code == httpx.codes.NOT_FOUND
    told = missing.json()["error"]["message"]
    assert told.startswith("The model `nope` does not exist.")
    assert told.endswith(f"This server has: {BASE_MODEL}, {NAME}")


async def test_an_exported_version_is_loaded_by_peft_and_by_vllm_and_answers_as_it_did(
    site: Site, client: VllmClient, tmp_path: Path
) -> None:
    await serve(client, site, 15)
    headers = {**HEADERS, "X-Claas-Token": TOKEN}
    async with httpx.AsyncClient(base_url=site.server.url, headers=headers, timeout=60.0, trust_env=False) as http:
        answer = await http.get(f"/claas/adapters/{NAME}/export")
        unknown = await http.get("/claas/adapters/nobody/export")
        refused = await http.get(f"/claas/adapters/{NAME}/export", headers={"X-Claas-Token": "wrong"})
    assert (answer.status_code, unknown.status_code, refused.status_code) == (200, 404, 403)
    assert answer.headers["x-claas-version"] == f"{NAME}@15"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path)

    assert await client.load_adapter("exported", str(tmp_path)) is LoadOutcome.LOADED
    exported = await client.probe("exported", PROBE.prompt, max_tokens=PROBE.max_tokens)
    served = await client.probe(NAME, PROBE.prompt, max_tokens=PROBE.max_tokens)
    assert exported.token_ids == served.token_ids
    assert await client.unload_adapter("exported")
    tokens = torch.tensor([served.token_ids])
    with torch.no_grad():
        logits = [
            PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(site.server.model), folder)(tokens).logits
            for folder in (tmp_path, site.path(15), site.path(14))
        ]
    assert torch.equal(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2])


async def test_a_version_of_nan_weights_fails_its_probe_and_is_not_served(site: Site, client: VllmClient) -> None:
    await serve(client, site, 11)
    spoilt = build_adapter(site.server.model, site.root / "spoilt" / "12", seed=12)
    spoil_adapter(spoilt)
    with pytest.raises(ProbeFailed):
        await put_in_service(client, served_name=NAME, version=12, path=str(spoilt), probe=PROBE)
    served = await loaded_version(client, NAME)
    assert served is not None
    assert served.version == 11
    await wait_for_targets(client, {f"{NAME}@11"})
    # Answers are not asked for here: vLLM's CPU attention reads stale cache blocks, which now hold NaN. That is
    # why nothing with such weights may be published, and why this test stands last before the restart.


async def test_a_restarted_server_serves_its_aliases_before_it_accepts_a_request(
    site: Site, client: VllmClient
) -> None:
    await serve(client, site, 11)
    # A second name whose version is gone, and a file that is no alias: neither keeps the server from starting.
    (site.companion.alias_dir / "gone.json").write_text(
        json.dumps({"name": "gone", "target": "gone@1", "path": "/nowhere/versions/1", "version": 1})
    )
    (site.companion.alias_dir / "broken.json").write_text("{")

    await asyncio.to_thread(site.server.restart)

    # `restart` returns at the first answered request; nothing has put anything in service since.
    again = await put_in_service(client, served_name=NAME, version=11, path=site.path(11), probe=PROBE)
    assert not again.changed
    assert (await client.probe(NAME, PROBE.prompt)).answered_by == f"{NAME}@11"
    status = await client.companion_status()
    assert status is not None
    assert [alias.target for alias in status.aliases] == [f"{NAME}@11"]
    assert await client.model("gone") is None
    log = site.server.log.read_text(errors="replace")
    assert "gone is not served" in log
    assert PROBE.prompt not in log


async def test_the_worker_says_why_its_weights_cannot_be_shared_and_asks_for_the_token(
    site: Site, client: VllmClient
) -> None:
    assert (await client.export_weights())["refusal"] == "they are not on a GPU but on cpu"
    async with VllmClient(site.server.url, api_key=API_KEY) as stranger:
        with pytest.raises(Refused):
            await stranger.export_weights()
