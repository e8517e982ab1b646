"""What an initialisation does: make an adapter, go on with one that is there, or refuse. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import cast

from pydantic import JsonValue

from claas_crds import API_VERSION
from claas_crds.v1alpha1.lora_adapter import KIND
from claas_gateway.access.callers import Caller
from claas_gateway.adapters.models import LoraInitRequest
from claas_gateway.adapters.naming import object_name
from claas_gateway.adapters.template import AdapterTemplate
from claas_gateway.directory.models import Adapter
from claas_gateway.directory.names import dashed, names_of
from claas_gateway.errors import Conflicting, NotPermitted
from claas_kube.objects.meta import Manifest
from claas_kube.objects.resources import AdapterObject

MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "claas-gateway"


def made_here(adapter: Adapter) -> bool:
    """Whether the gateway made an adapter, and so may delete it."""
    return adapter.found.metadata.labels.get(MANAGED_BY) == MANAGER


def permit(caller: Caller, template: AdapterTemplate, request: LoraInitRequest) -> None:
    """Raises NotPermitted if the caller may not have that adapter made."""
    if caller.adapter is not None:
        raise NotPermitted("this API key is for one adapter and makes no others")
    if not caller.sees(template.namespace, None):
        raise NotPermitted("adapters are made in a namespace that this API key is not for")
    if request.base_model is not None and request.base_model not in template.base_models:
        raise NotPermitted(
            f"base_model {request.base_model} is not allowed; allowed: {', '.join(sorted(template.base_models))}"
        )


def new_manifest(template: AdapterTemplate, request: LoraInitRequest, folder: str) -> Manifest:
    """The LoraAdapter for a request. `folder` names the folder of its versions, below the template's: a new one, so
    that it goes on from nothing that an earlier adapter of that name has left on the volume."""
    spec = deepcopy(template.spec)
    lora = cast(dict[str, JsonValue], spec.setdefault("lora", {}))
    lora |= {"rank": request.lora_r, "alpha": request.lora_alpha}
    if request.target_modules is not None:
        lora["targetModules"] = cast(JsonValue, request.target_modules)
    spec["loraId"] = request.lora_id
    cast(dict[str, JsonValue], spec["serving"])["servedName"] = dashed(request.lora_id)
    storage = cast(dict[str, JsonValue], spec["storage"])
    storage["path"] = f"{template.parsed.storage.path or template.namespace}/{folder}"
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {
            "name": object_name(request.lora_id),
            "namespace": template.namespace,
            "labels": {MANAGED_BY: MANAGER},
        },
        "spec": spec,
    }


def find_made(template: AdapterTemplate, request: LoraInitRequest, known: Iterable[Adapter]) -> Adapter | None:
    """The adapter that an earlier request of the same content has made. Raises Conflicting if one of the names that
    the new adapter would have is taken. `known`: all adapters that share names with it, and no others.
    """
    wanted = Adapter(AdapterObject.model_validate(new_manifest(template, request, "new")))
    names = names_of(wanted.found).keys()
    for adapter in known:
        if adapter.lora_id == request.lora_id and adapter.namespace == template.namespace:
            if made_here(adapter) and _same(adapter, wanted):
                return adapter
            raise Conflicting(f"{request.lora_id} exists already, with other settings or made by somebody else")
        taken = sorted(names & (names_of(adapter.found).keys() | {adapter.base_model}))
        if taken:
            raise Conflicting(f"{request.lora_id} would also be {taken[0]}, which is a name of {adapter.lora_id}")
    if template.parsed.model.name in names:
        raise Conflicting(f"{request.lora_id} is the name of the base model")
    return None


def yields_to(made: Adapter, known: Iterable[Adapter]) -> Adapter | None:
    """An adapter with a name in common that was there first: two requests at a time did not see each other."""
    names = names_of(made.found).keys()
    for other in known:
        if other.uid != made.uid and names & names_of(other.found).keys() and _age(other) < _age(made):
            return other
    return None


def _same(one: Adapter, other: Adapter) -> bool:
    return one.found.spec.lora == other.found.spec.lora and one.base_model == other.base_model


def _age(adapter: Adapter) -> tuple[float, str, str]:
    created = adapter.found.metadata.creation_timestamp
    return (created.timestamp() if created is not None else 0.0, adapter.namespace, adapter.name)
