"""The routes below /v1/lora."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from fastapi.responses import StreamingResponse

from claas_gateway.access.callers import Caller
from claas_gateway.access.dependency import caller_of
from claas_gateway.adapters.export import export
from claas_gateway.adapters.models import LoraDeletion, LoraInitAnswer, LoraInitRequest, LoraList
from claas_gateway.adapters.planning import find_made, made_here, new_manifest, permit, yields_to
from claas_gateway.adapters.serving_wait import ServingWait
from claas_gateway.adapters.template import AdapterTemplate, read_template
from claas_gateway.directory.models import Adapter
from claas_gateway.errors import Conflicting, Failed, GatewayError, NotFound, NotNow, NotPermitted, NotProvided
from claas_gateway.services import Services
from claas_kube.errors import ApiError, Conflict, Unavailable
from claas_kube.objects.resources import AdapterObject
from claas_kube.resources import ADAPTERS

INIT_SECONDS = 120.0
"""How long an initialisation waits until the adapter serves; a vLLM outside the cluster may have to start first."""
_SUFFIXES = ("-init", "-latest")

LoraId = Annotated[str, Query(max_length=512, description="An adapter's identifier, `ID-init` or `ID-latest`.")]


def router(services: Services) -> APIRouter:
    """The routes. Raises SettingsError if the template of adapters can't be used."""
    path = services.settings.adapter_template
    adapters = Adapters(services, read_template(path) if path is not None else None)
    routes = APIRouter(prefix="/v1/lora", tags=["adapters"])
    routes.post("/init", responses=_errors(403, 409, 500, 501))(adapters.init)
    routes.get("")(adapters.listing)
    routes.delete("", responses=_errors(403, 409))(adapters.delete)
    routes.get("/export", response_class=StreamingResponse, responses=_zip() | _errors(404, 409, 501))(
        adapters.export
    )
    return routes


class Adapters:
    """Makes, lists, exports and deletes adapters."""

    def __init__(self, services: Services, template: AdapterTemplate | None) -> None:
        self._services = services
        self._template = template
        self._wait = ServingWait(services.directory)

    async def init(self, request: LoraInitRequest, caller: Annotated[Caller, Depends(caller_of)]) -> LoraInitAnswer:
        """Make an adapter, and answer once it serves. The same request repeated has the same answer; another one with
        a name that is taken gets 409. A new adapter that does not come to serve is removed again."""
        if self._template is None:
            raise NotProvided(
                "this gateway makes no adapters: apply a LoraAdapter, or set the chart's gateway.adapterTemplate"
            )
        permit(caller, self._template, request)
        known = self._sharing_names(caller, self._template)
        there = find_made(self._template, request, known)
        if there is not None:
            wrong = await self._wait.until_served(there.namespace, there.name, there.uid, self._seconds(there))
            if wrong is not None:
                # It stays: it may have learned, and what is in the way may pass.
                raise _failed(wrong)
        else:
            await self._serving(caller, self._template, await self._make(self._template, request))
        return LoraInitAnswer(lora_id=f"{request.lora_id}-init")

    async def listing(
        self,
        caller: Annotated[Caller, Depends(caller_of)],
        prefix: Annotated[str, Query(max_length=512, description="What the identifiers begin with.")] = "",
    ) -> LoraList:
        """The adapters that the key sees, each by both of its aliases."""
        seen = self._services.directory.adapters(caller.namespace, caller.adapter)
        names = {f"{adapter.lora_id}{suffix}" for adapter in seen for suffix in _SUFFIXES}
        return LoraList(loras=sorted(name for name in names if name.startswith(prefix)))

    async def delete(self, lora_id: LoraId, caller: Annotated[Caller, Depends(caller_of)]) -> LoraDeletion:
        """Delete an adapter that was made here. Its versions stay on the volume."""
        adapter = self._find(caller, lora_id)
        if adapter is None:
            return LoraDeletion(deleted=False)
        if not made_here(adapter):
            raise NotPermitted(f"{adapter.lora_id} was not made by the gateway: delete the LoraAdapter instead")
        await self._remove(adapter)
        return LoraDeletion(deleted=True)

    async def export(self, lora_id: LoraId, caller: Annotated[Caller, Depends(caller_of)]) -> StreamingResponse:
        """The version in service as a zip that PEFT and vLLM load, without the optimiser's state."""
        adapter = self._find(caller, lora_id)
        if adapter is None:
            raise NotFound("LoRA not found: no adapter of that identifier")
        services = self._services
        return await export(services.upstream, adapter, services.settings.cold_start_seconds)

    def _sharing_names(self, caller: Caller, template: AdapterTemplate) -> Sequence[Adapter]:
        """The adapters whose names a caller can't tell from the new one's: those of its namespace, or all."""
        namespace = template.namespace if caller.namespace is not None else None
        return self._services.directory.adapters(namespace)

    def _find(self, caller: Caller, lora_id: str) -> Adapter | None:
        """The adapter of an identifier, which wins, or of an alias; no other names count here."""
        seen = self._services.directory.adapters(caller.namespace, caller.adapter)
        named = [adapter for adapter in seen if adapter.lora_id == lora_id]
        found = named or [each for each in seen if lora_id in {f"{each.lora_id}{suffix}" for suffix in _SUFFIXES}]
        if len(found) > 1:
            raise Conflicting("several namespaces have an adapter of that identifier: use a key of one of them")
        return found[0] if found else None

    async def _make(self, template: AdapterTemplate, request: LoraInitRequest) -> Adapter:
        name = f"{request.lora_id.rpartition('/')[2]}-{secrets.token_hex(4)}"
        manifest = new_manifest(template, request, name)
        try:
            created = await self._services.api.create(ADAPTERS, template.namespace, manifest)
        except Conflict:
            raise Conflicting(
                f"the name that {request.lora_id} would have in Kubernetes is taken; if it is being made, try again"
            ) from None
        except Unavailable:
            raise NotNow("Kubernetes does not answer", retry_after_seconds=5) from None
        except ApiError as error:
            raise _failed(str(error)) from None
        return Adapter(AdapterObject.model_validate(created))

    async def _serving(self, caller: Caller, template: AdapterTemplate, made: Adapter) -> None:
        """Return when it serves; remove it and raise when it does not."""
        earlier: list[str] = []

        def look(adapter: Adapter) -> str | None:
            other = yields_to(adapter, self._sharing_names(caller, template))
            if other is not None:
                earlier.append(other.lora_id)
            return f"{other.lora_id} has one of its names" if other is not None else None

        wrong = await self._wait.until_served(made.namespace, made.name, made.uid, self._seconds(made), look)
        if wrong is None:
            return
        refusal: GatewayError = Conflicting(wrong) if earlier else _failed(wrong)
        try:
            await self._remove(made)
        except GatewayError as error:
            raise Failed(f"{refusal.detail}; and it could not be removed: {error.detail}") from None
        raise refusal

    def _seconds(self, adapter: Adapter) -> float:
        starts = self._services.settings.cold_start_seconds if adapter.servers.outside else 0.0
        return INIT_SECONDS + starts

    async def _remove(self, adapter: Adapter) -> None:
        try:
            await self._services.api.delete(ADAPTERS, adapter.namespace, adapter.name, uid=adapter.uid)
        except Unavailable:
            raise NotNow("Kubernetes does not answer", retry_after_seconds=5) from None
        except ApiError as error:
            raise Failed(f"Kubernetes refuses: {error}") from None


def _failed(why: str) -> Failed:
    return Failed(f"LoRA initialization failed: {why}")


_SAID = {
    403: "The key does not allow it, or base_model is not the template's.",
    404: "There is no such adapter, or no version of it is in service.",
    409: "A name is taken, or an identifier does not name one adapter.",
    500: "It did not come to serve; the message says why.",
    501: "The gateway has no template of adapters, or vLLM no companion.",
}


def _errors(*statuses: int) -> dict[int | str, dict[str, object]]:
    return {status: {"description": _SAID[status]} for status in statuses}


def _zip() -> dict[int | str, dict[str, object]]:
    return {200: {"description": "The adapter.", "content": {"application/zip": {}}}}
