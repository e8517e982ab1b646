"""The routes below /v1/sampler: whose weights are told to whom, and when a new version is awaited."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import JsonValue

from claas_gateway.access.callers import EVERYTHING, Caller
from claas_gateway.adapters.sampler import Sampler, SamplerRefreshRequest
from claas_gateway.errors import NotFound, NotNow, Unprocessable
from claas_kube.resources import ADAPTERS
from tests.builders.front import NAMESPACE
from tests.builders.whole_gateway import WholeGateway, weights, whole_gateway

BY_TINKER: dict[str, JsonValue] = {"engine": {"tinker": {"baseModel": "org/base"}}, "serving": {"tinkerProxy": {}}}
ADAPTERS_THERE = {"tone": BY_TINKER, "calm": BY_TINKER, "local": {}}


def shows(whole: WholeGateway, name: str, *, served: int | None, latest: int | None) -> None:
    """Have an adapter's status say which version serves and which is the newest."""
    versions: list[JsonValue] = [
        {"number": n, "path": f"v/{n}", "digest": "d", "created": "2026-01-01T00:00:00Z", "weights": weights(n)}
        for n in (1, 2)
    ]
    status: JsonValue = {"servedVersion": served, "latestVersion": latest, "versions": versions}
    whole.small.put(ADAPTERS, NAMESPACE, {**whole.small.found(ADAPTERS, NAMESPACE, name), "status": status})


async def test_what_is_sampled_from_is_told_to_those_who_see_the_adapter(tmp_path: Path) -> None:
    async with whole_gateway(tmp_path, names=ADAPTERS_THERE) as whole:
        sampler = Sampler(whole.services)
        shows(whole, "tone", served=2, latest=2)
        for caller, lora_id in ((Caller("key", NAMESPACE, "tone"), None), (EVERYTHING, f"{NAMESPACE}/tone-latest")):
            told = await sampler.status(caller, lora_id)
            assert (told.lora_id, told.version) == (f"{NAMESPACE}/tone", 2)
            assert (told.model_path, told.base_model) == (weights(2), "org/base")
        assert (await sampler.status(EVERYTHING, "calm")).model_path is None, "the base model"
        with pytest.raises(Unprocessable, match=f"{NAMESPACE}/calm, {NAMESPACE}/tone"):
            await sampler.status(EVERYTHING)
        for caller, hidden in ((Caller("key", "other"), "tone"), (Caller("key", NAMESPACE, "calm"), "tone")):
            with pytest.raises(NotFound):
                await sampler.status(caller, hidden)
        for caller, other in ((Caller("key", "other"), None), (EVERYTHING, "local"), (EVERYTHING, "base")):
            with pytest.raises(NotFound, match="from a service"):
                await sampler.status(caller, other)


async def test_a_new_version_is_sampled_from_once_it_is_in_service(tmp_path: Path) -> None:
    async with whole_gateway(tmp_path, names=ADAPTERS_THERE) as whole:
        sampler = Sampler(whole.services)
        shows(whole, "tone", served=1, latest=2)
        for wish in (None, weights(2)):
            with pytest.raises(NotNow) as refused:
                await sampler.refresh(SamplerRefreshRequest(model_path=wish), EVERYTHING)
            assert refused.value.retry_after_seconds
        old = await sampler.refresh(SamplerRefreshRequest(model_path=weights(1)), EVERYTHING)
        assert old.model_path == weights(1), "it is what serves"
        shows(whole, "tone", served=2, latest=2)
        for request in (SamplerRefreshRequest(lora_id="tone"), SamplerRefreshRequest(model_path=weights(2))):
            assert (await sampler.refresh(request, EVERYTHING)).model_path == weights(2)
        with pytest.raises(NotFound):
            await sampler.refresh(SamplerRefreshRequest(model_path=weights(2)), Caller("key", "other"))
