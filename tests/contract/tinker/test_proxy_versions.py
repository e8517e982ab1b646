"""Versions come into service on the proxy as on a vLLM, and no request notices."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx
import pytest
from tinker import types
from transformers import AutoTokenizer

from claas_crds.v1alpha1.version import VersionVerdict
from claas_trainer.store.verdict import write_verdict
from claas_vllm_client import (
    AdapterRejected,
    ProbeSpec,
    VllmClient,
    put_in_service,
    take_out_of_service,
    verify_in_service,
)
from claas_vllm_client.in_service import Verification, loaded_version
from tests.contract.tinker.conftest import VERSIONS
from tests.contract.tinker.proxy_server import BASE_MODEL, SERVED_NAME, TOKEN
from tests.contract.tinker.proxy_site import ProxySite

pytestmark = pytest.mark.contract

PROBE = ProbeSpec("Hello")
STREAMS = 32
QUESTION = [{"role": "user", "content": "What colour is it?"}]
Make = Callable[..., ProxySite]


@asynccontextmanager
async def client_of(site: ProxySite) -> AsyncIterator[VllmClient]:
    async with VllmClient(site.proxy.url, control_token=TOKEN, timeout_seconds=60.0) as client:
        yield client


async def put(client: VllmClient, site: ProxySite, number: int) -> None:
    outcome = await put_in_service(
        client, served_name=SERVED_NAME, version=number, path=str(site.folder(number)), probe=PROBE
    )
    assert outcome.target == f"{SERVED_NAME}@{number}"


def ready(site: ProxySite) -> httpx.Response:
    return httpx.get(f"{site.proxy.url}/ready", trust_env=False)


async def test_the_newest_version_that_was_not_rejected_is_served_from_the_start(new_site: Make) -> None:
    site = new_site()
    for number in (0, 1, 2, 3):
        site.publish(number)
    write_verdict(site.folder(3), VersionVerdict.REJECTED)
    site.proxy.launch().wait_until_ready()
    async with client_of(site) as client:
        found = await loaded_version(client, SERVED_NAME)
        assert found is not None
        assert (found.version, found.path) == (2, str(site.folder(2)))
        assert (await client.probe(SERVED_NAME, "Hello")).answered_by == f"{SERVED_NAME}@2"


async def test_without_a_version_the_proxy_lives_and_is_ready_when_one_comes(new_site: Make) -> None:
    site = new_site()
    site.proxy.launch().wait_until_live()
    assert ready(site).status_code == 503
    assert "no version" in ready(site).json()["why"]
    async with client_of(site) as client:
        assert await client.health()
        # The base model answers meanwhile.
        assert (await client.probe(BASE_MODEL, "Hello")).token_ids
        site.publish(0)
        site.proxy.wait_until_ready()
        # Version 0 is the base model.
        base, served = await client.probe(BASE_MODEL, "Hello"), await client.probe(SERVED_NAME, "Hello")
        assert served.token_ids == base.token_ids
        assert served.answered_by == f"{SERVED_NAME}@0"


async def test_a_version_comes_into_service_as_on_a_vllm(new_site: Make) -> None:
    site = new_site()
    site.publish(1)
    site.publish(2)
    site.proxy.launch().wait_until_ready()
    tokenizer = AutoTokenizer.from_pretrained(site.proxy.model)
    async with client_of(site) as client:
        await put(client, site, 1)
        await put(client, site, 2)
        status = await client.companion_status()
        assert status is not None
        alias = status.alias(SERVED_NAME)
        assert alias is not None
        assert (alias.version, alias.loaded, alias.verified) == (2, True, True)
        assert status.vllm_supported
        assert status.settings is not None
        assert (status.settings.served_model_names, status.settings.can_pause) == ((BASE_MODEL,), False)
        load = await client.load()
        assert (load.running, load.waiting) == (0, 0)
        assert (load.generated_tokens or 0) > 0
        prompt = types.ModelInput.from_ints(tokenizer.encode("Hello"))
        settings = types.SamplingParams(max_tokens=8, temperature=0.0)
        expected = site.sampler(2).sample(prompt, 1, settings).result().sequences[0]
        answer = await client.probe(SERVED_NAME, "Hello")
        assert list(answer.token_ids) == expected.tokens
        assert list(answer.logprobs) == pytest.approx(expected.logprobs, abs=1e-4)
        # The old version is unloaded.
        names = {model.id for model in await client.models()}
        assert names == {BASE_MODEL, SERVED_NAME, f"{SERVED_NAME}@2"}
        assert await client.tokenize_chat(QUESTION) == tuple(
            tokenizer.encode(
                tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True),
                add_special_tokens=False,
            )
        )
        assert await take_out_of_service(client, served_name=SERVED_NAME)
        await asyncio.sleep(3)
        # What was taken out of service stays out.
        assert await loaded_version(client, SERVED_NAME) is None
        assert ready(site).status_code == 503


async def test_the_version_that_was_chosen_is_served_again_after_a_restart(new_site: Make) -> None:
    site = new_site()
    for number in (1, 2, 3):
        site.publish(number)
    site.proxy.launch().wait_until_ready()
    async with client_of(site) as client:
        await put(client, site, 2)  # A rollback.
    site.proxy.stop()
    site.proxy.launch().wait_until_ready()
    async with client_of(site) as client:
        found = await loaded_version(client, SERVED_NAME)
        assert found is not None
        assert found.version == 2
        checked = await verify_in_service(client, served_name=SERVED_NAME, probe=PROBE)
        assert checked is Verification.ANSWERED


async def test_a_version_that_is_gone_keeps_no_pod_from_becoming_ready(new_site: Make) -> None:
    """Nobody asks a pod that is not ready, so nobody could give it another version."""
    site = new_site()
    for number in (1, 2, 3):
        site.publish(number)
    forget(site, 3)
    site.proxy.launch().wait_until_ready()
    async with client_of(site) as client:
        found = await loaded_version(client, SERVED_NAME)
        assert found is not None
        assert found.version == 2
    forget(site, 2)
    site.proxy.stop()
    # Its alias folder outlives the container.
    site.proxy.launch().wait_until_ready()
    async with client_of(site) as client:
        found = await loaded_version(client, SERVED_NAME)
        assert found is not None
        assert found.version == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "can't be read"),
        ("{}", "not of this form"),
        (json.dumps({"base_model": "another/model", "rank": 4, "seed": 1}), "an adapter of another/model"),
        (
            json.dumps({
                "base_model": "peer/tiny-qwen3", "rank": 4, "seed": 1,
                "sampler_path": "tinker://gone/sampler_weights/v1",
            }),
            "CheckpointExpired",
        ),
    ],
)  # fmt: skip
async def test_a_version_that_can_not_be_loaded_is_rejected_with_the_reason(
    content: str | None, said: str, shared_site: ProxySite
) -> None:
    folder = shared_site.folder(17)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "tinker.json"
    file.unlink(missing_ok=True)
    if content is not None:
        file.write_text(content)
    async with client_of(shared_site) as client:
        with pytest.raises(AdapterRejected, match=said):
            await client.load_adapter(f"{SERVED_NAME}@17", str(folder))


async def test_streams_go_on_through_five_refreshes_each_with_one_version(new_site: Make) -> None:
    """32 clients stream without pause while five versions come into service."""
    site = new_site()
    for number in range(1, VERSIONS + 1):
        site.publish(number)
    write_verdict(site.folder(VERSIONS), VersionVerdict.REJECTED)
    site.proxy.launch().wait_until_ready()
    async with client_of(site) as client:
        await put(client, site, 1)
        expected = {number: await _greedy(site, number) for number in range(1, VERSIONS + 1)}
        assert len(set(expected.values())) == VERSIONS
        answered: Counter[int] = Counter()
        done = asyncio.Event()

        async def stream() -> None:
            async with httpx.AsyncClient(base_url=site.proxy.url, timeout=60, trust_env=False) as http:
                while not done.is_set():
                    answered[await _one(http, expected)] += 1

        async with asyncio.TaskGroup() as group:
            for _ in range(STREAMS):
                group.create_task(stream())
            for number in range(2, VERSIONS + 1):
                await _some_more(answered, STREAMS // 2)
                await put(client, site, number)
            await _some_more(answered, STREAMS // 2)
            done.set()
        print(f"{sum(answered.values())} streams: {dict(sorted(answered.items()))}")
        assert answered[VERSIONS] > 0
        assert len(answered) == VERSIONS


def forget(site: ProxySite, number: int) -> None:
    """Have the version's checkpoint expire."""
    file = site.folder(number) / "tinker.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "sampler_path": "tinker://gone/sampler_weights/v1"}))


async def _greedy(site: ProxySite, number: int) -> tuple[int, ...]:
    settings = types.SamplingParams(max_tokens=16, temperature=0.0)
    prompt = types.ModelInput.from_ints([46, 77, 66])
    sampled = await asyncio.to_thread(lambda: site.sampler(number).sample(prompt, 1, settings).result())
    return tuple(sampled.sequences[0].tokens)


async def _one(http: httpx.AsyncClient, expected: dict[int, tuple[int, ...]]) -> int:
    """One streamed answer; returns the version that gave all of it."""
    body = {
        "model": SERVED_NAME, "prompt": [46, 77, 66], "max_tokens": 16, "temperature": 0, "stream": True,
        "return_token_ids": True, "stop_token_ids": [], "ignore_eos": True,
    }  # fmt: skip
    answer = await http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    version = int(answer.headers["x-claas-version"].rpartition("@")[2])
    lines = [line[len("data: ") :] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    documents = [json.loads(line) for line in lines[:-1]]
    assert {document["model"] for document in documents} == {SERVED_NAME}
    ids = [token for document in documents for token in document["choices"][0]["token_ids"]]
    assert tuple(ids) == expected[version]
    return version


async def _some_more(answered: Counter[int], number: int) -> None:
    enough = sum(answered.values()) + number
    async with asyncio.timeout(120):
        while sum(answered.values()) < enough:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
