"""The routes below /v1/sampler, which CLaaS has with Tinker: what an adapter samples from in the engine's service."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field

from claas_gateway.access.callers import Caller
from claas_gateway.access.dependency import caller_of
from claas_gateway.directory.models import Adapter
from claas_gateway.errors import Conflicting, NotFound, NotNow, Unprocessable
from claas_gateway.services import Services
from claas_kube.errors import ApiError
from claas_kube.objects.resources import AdapterObject
from claas_kube.resources import ADAPTERS

_RETRY_SECONDS = 5
_LONGEST = 512

Admitted = Annotated[Caller, Depends(caller_of)]
LoraId = Annotated[
    str | None,
    Query(max_length=_LONGEST, description="Which adapter; needed where the key sees several of this kind."),
]


class SamplerStatus(BaseModel):
    """What an adapter samples from."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    model_path: str | None
    """Address of the weights in the engine's service; null: the base model."""
    base_model: str
    """The service's name of the base model."""
    lora_id: str
    """The adapter."""
    version: int | None
    """Its version in service; null: none is yet."""


class SamplerRefreshRequest(BaseModel):
    """A wish that new weights be sampled from. Fields that are not named here are ignored."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    model_path: str | None = Field(default=None, max_length=_LONGEST)
    """Address of the weights; null: those of the newest version."""
    lora_id: str | None = Field(default=None, max_length=_LONGEST)
    """The adapter; null: all of this kind that the key sees."""


class SamplerRefreshAnswer(BaseModel):
    """These weights are sampled from."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    status: Literal["ok"] = "ok"
    model_path: str | None
    """Address of the weights; null: the base model, or several adapters were asked about."""


def router(services: Services) -> APIRouter:
    """The routes."""
    sampler = Sampler(services)
    routes = APIRouter(prefix="/v1/sampler", tags=["adapters"])
    routes.get("/status", responses=_errors(404, 422))(sampler.status)
    routes.post("/refresh", responses=_errors(404, 409))(sampler.refresh)
    return routes


class Sampler:
    """Tells of the adapters whose weights an engine's service keeps."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def status(self, caller: Admitted, lora_id: LoraId = None) -> SamplerStatus:
        """The weights that an adapter samples from."""
        found = self._sampling(caller, lora_id)
        if not found:
            raise NotFound("no adapter that this key sees samples from a service: see spec.engine.tinker")
        if len(found) > 1:
            raise Unprocessable(f"lora_id: it is needed, there are {', '.join(each.lora_id for each in found)}")
        adapter = await self._now(found[0])
        return SamplerStatus(
            model_path=_path(adapter),
            base_model=adapter.service_model,
            lora_id=adapter.lora_id,
            version=adapter.found.status.served_version,
        )

    async def refresh(self, asked: SamplerRefreshRequest, caller: Admitted) -> SamplerRefreshAnswer:
        """Whether the weights that are asked for are sampled from. A new version goes into service by itself; until
        it has, the answer is 503 with Retry-After. An older one is put into service by nobody: 409."""
        adapters = [await self._now(each) for each in self._sampling(caller, asked.lora_id)]
        if asked.model_path is not None:
            adapters = [each for each in adapters if _number(each, asked.model_path) is not None]
            if not adapters:
                raise NotFound("model_path: no version of an adapter that this key sees has these weights")
        for adapter in adapters:
            status = adapter.found.status
            newest = status.latest_version
            wanted = newest if asked.model_path is None else _number(adapter, asked.model_path)
            if wanted == status.served_version:
                continue
            if wanted != newest:
                raise Conflicting(
                    f"model_path: it is version {wanted} of {adapter.lora_id}; what serves is version {newest}"
                )
            raise NotNow(
                f"version {wanted} of {adapter.lora_id} is not in service yet", retry_after_seconds=_RETRY_SECONDS
            )
        return SamplerRefreshAnswer(model_path=_path(adapters[0]) if len(adapters) == 1 else None)

    def _sampling(self, caller: Caller, lora_id: str | None) -> Sequence[Adapter]:
        """The adapters of this kind that a caller sees, or the one that is named."""
        directory = self._services.directory
        if lora_id is None:
            seen = directory.adapters(caller.namespace, caller.adapter)
            return [each for each in seen if each.samples_from_service]
        target = directory.resolve(lora_id, caller.namespace, caller.adapter)
        if not isinstance(target, Adapter) or not target.samples_from_service:
            raise NotFound(f"lora_id: {lora_id} does not sample from a service: see spec.engine.tinker")
        return [target]

    async def _now(self, adapter: Adapter) -> Adapter:
        """The adapter as it is now: clients ask right after a step, when a watch may be a moment behind."""
        try:
            found = await self._services.api.get(ADAPTERS, adapter.namespace, adapter.name)
        except ApiError:
            raise NotNow("Kubernetes does not answer", retry_after_seconds=_RETRY_SECONDS) from None
        return Adapter(AdapterObject.model_validate(found)) if found is not None else adapter


def _path(adapter: Adapter) -> str | None:
    """Address of the weights in service."""
    status = adapter.found.status
    return next((each.weights for each in status.versions if each.number == status.served_version), None)


def _number(adapter: Adapter, path: str) -> int | None:
    """The version with these weights."""
    return next((each.number for each in adapter.found.status.versions if each.weights == path), None)


_SAID = {
    404: "There is no such adapter, or no version has these weights.",
    409: "They are the weights of an older version.",
    422: "The key sees several such adapters, and none is named.",
}


def _errors(*statuses: int) -> dict[int | str, dict[str, object]]:
    return {status: {"description": _SAID[status]} for status in statuses}
