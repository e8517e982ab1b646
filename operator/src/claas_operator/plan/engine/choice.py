"""The engine of an adapter's steps, and what it needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from claas_contract import places
from claas_contract.engine import ENGINE_NEEDS, EngineNeeds, ServingNeed
from claas_crds.v1alpha1.engine import EngineName, EngineSpec
from claas_kube.objects.resources import AdapterObject


def engine_of(adapter: AdapterObject, default: EngineName) -> EngineSpec:
    """The adapter's engine, or else the operator's execution mode (`default`), with settings that follow from the
    adapter filled in."""
    engine = adapter.spec.engine or EngineSpec.of(default)
    if engine.tinker is None or engine.tinker.base_model is not None:
        return engine
    tinker = engine.tinker.model_copy(update={"base_model": adapter.spec.model.public_name})
    return engine.model_copy(update={"tinker": tinker})


def needs_of(adapter: AdapterObject, default: EngineName) -> EngineNeeds:
    """What the adapter's engine needs; `default`: the operator's execution mode."""
    engine = adapter.spec.engine
    return ENGINE_NEEDS[default if engine is None else engine.name]


def computes_elsewhere(adapter: AdapterObject, default: EngineName) -> bool:
    """Whether the adapter's steps need no device and nothing of serving."""
    return needs_of(adapter, default).serving is ServingNeed.NOTHING


@dataclass(frozen=True)
class ServiceSecret:
    """The Secret that opens the service which computes an adapter's steps."""

    field: str
    """The field of the spec that names it."""
    name: str
    files: Mapping[str, str]
    """By key, the file that the trainer reads."""


def service_secret(adapter: AdapterObject, default: EngineName) -> ServiceSecret | None:
    """The Secret of the service that computes the adapter's steps, if one does."""
    engine = engine_of(adapter, default)
    if engine.tinker is not None:
        key = engine.tinker.api_key_secret_ref
        return ServiceSecret("spec.engine.tinker.apiKeySecretRef", key.name, {key.key: places.TINKER_KEY_FILE})
    if engine.modal is not None:
        keys = (places.MODAL_TOKEN_ID, places.MODAL_TOKEN_SECRET)
        files = {key: f"{places.MODAL_TOKEN_DIRECTORY}/{key}" for key in keys}
        return ServiceSecret("spec.engine.modal.tokenSecretRef", engine.modal.token_secret_ref.name, files)
    return None
