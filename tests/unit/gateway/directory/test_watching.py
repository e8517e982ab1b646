"""What names stand for, and that the directory follows the cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import cast

import pytest
from pydantic import JsonValue

from claas_gateway.directory.models import Adapter, BaseModel
from claas_gateway.directory.watching import WatchedDirectory
from claas_gateway.errors import NotFound, Unprocessable
from claas_kube.objects.meta import Manifest
from claas_kube.resources import ADAPTERS, DISTILL_JOBS
from tests.builders.api_server import SmallApi, serving_api
from tests.builders.front import front
from tests.builders.resources import distill_job, lora_adapter
from tests.simulation.openai_server import OpenAIServer


def adapter(
    name: str, namespace: str, *, base: str = "tiny", served: str | None = None, lora_id: str = ""
) -> Manifest:
    serving: dict[str, JsonValue] = {"servedName": served} if served else {}
    made = cast(Manifest, lora_adapter(name, namespace, serving=serving, handover="Sleep"))
    spec = cast(Manifest, made["spec"])
    model: JsonValue = {**cast(Manifest, spec["model"]), "name": base}
    return {**made, "spec": {**spec, "model": model, **({"loraId": lora_id} if lora_id else {})}}


@asynccontextmanager
async def directory(*adapters: Manifest) -> AsyncIterator[tuple[WatchedDirectory, SmallApi]]:
    small = SmallApi()
    for made in adapters:
        small.put(ADAPTERS, str(cast(Manifest, made["metadata"])["namespace"]), made)
    async with serving_api(small) as api:
        found = WatchedDirectory(api, [])
        api.keep_informed(found)
        running = asyncio.create_task(found.run())
        await found.ready()
        assert found.listed()
        yield found, small
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


CODER = adapter("coder", "a", served="the-coder", lora_id="user one/coder-v1")


@pytest.mark.parametrize(
    "name",
    [
        "the-coder",
        "coder",
        "user one/coder-v1",
        "user one/coder-v1-init",
        "user one/coder-v1-latest",
        "user-one-coder-v1",
        "user-one-coder-v1-init",
        "user-one-coder-v1-latest",
    ],
)
async def test_each_name_of_an_adapter_stands_for_it(name: str) -> None:
    async with directory(CODER) as (found, _):
        target = found.resolve(name, "a")
        assert isinstance(target, Adapter)
        assert (target.name, target.served_name) == ("coder", "the-coder")


@pytest.mark.parametrize(
    ("name", "namespace", "only", "hidden"),
    [
        ("tone", "a", None, "b/tone"),
        ("the-coder", "b", None, "style"),
        ("style", "a", "coder", "tiny"),
        ("tiny", "a", "coder", "style,"),
        ("nobody", "a", None, "tone"),
    ],
)
async def test_what_the_caller_does_not_see_is_not_found_nor_named(
    name: str, namespace: str, only: str | None, hidden: str
) -> None:
    async with directory(CODER, adapter("style", "a"), adapter("tone", "b")) as (found, _):
        with pytest.raises(NotFound) as refused:
            found.resolve(name, namespace, only)
        assert hidden not in str(refused.value)


async def test_the_better_fit_wins_and_equal_ones_are_told_apart_by_the_identifier_alone() -> None:
    async with directory(
        adapter("coder", "a"), adapter("coder", "b"), adapter("tone", "a", served="x"), adapter("x", "a")
    ) as (found, _):
        with pytest.raises(Unprocessable, match="a/coder, b/coder"):
            found.resolve("coder", None)
        assert found.resolve("a/coder", None).servers.namespace == "a"
        with pytest.raises(Unprocessable):
            found.resolve("x", "a")


async def test_without_a_model_the_only_base_model_answers_or_the_keys_adapter() -> None:
    async with directory(adapter("coder", "a"), adapter("tone", "b", base="other")) as (found, _):
        target = found.resolve(None, "a")
        assert isinstance(target, BaseModel)
        assert target.name == "tiny"
        alone = found.resolve(None, "a", "coder")
        assert isinstance(alone, Adapter)
        with pytest.raises(Unprocessable, match="other, tiny"):
            found.resolve(None, None)
        with pytest.raises(NotFound):
            found.resolve(None, "nowhere")


async def test_names_jobs_and_listeners_follow_the_cluster() -> None:
    async with directory(CODER) as (found, small):
        changed: list[tuple[str, str]] = []
        found.listen(lambda namespace, name: changed.append((namespace, name)))
        small.put(ADAPTERS, "a", adapter("coder", "a", served="renamed"))
        await small.until(lambda: ("a", "coder") in changed)
        assert found.resolve("renamed", "a")
        with pytest.raises(NotFound):
            found.resolve("the-coder", "a")
        changed.clear()
        job = cast(Manifest, distill_job("bt-1", "a", "coder"))
        labelled: Manifest = {**job, "metadata": {"name": "bt-1", "labels": {"claas.dev/gateway": "true"}}}
        small.put(DISTILL_JOBS, "a", job)
        small.put(
            DISTILL_JOBS, "a", {**labelled, "metadata": {**cast(Manifest, labelled["metadata"]), "name": "bt-2"}}
        )
        await small.until(lambda: found.job("a", "bt-2") is not None)
        assert found.job("a", "bt-1") is None, "nobody's job but the gateway's"
        assert changed == [("a", "coder")]
        small.remove(ADAPTERS, "a", "coder")
        await small.until(lambda: found.adapter("a", "coder") is None)
        assert found.adapters(None) == []
        assert found.base_models(None) == []


async def test_a_pod_may_sleep_while_a_step_with_that_hand_over_is_granted() -> None:
    async with front(OpenAIServer(), OpenAIServer()) as made:
        await made.grant("vllm-0", handover="Share")
        await made.grant("vllm-0")
        await made.grant("vllm-0", "vllm-1")
        await made.grant()
