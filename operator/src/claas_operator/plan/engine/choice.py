"""The engine of an adapter's steps, and what it needs."""

from __future__ import annotations

from claas_contract.engine import ENGINE_NEEDS, EngineNeeds, ServingNeed
from claas_crds.v1alpha1.engine import EngineName, EngineSpec
from claas_crds.v1alpha1.trainer_pod import SecretKeyRef
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


def service_key(adapter: AdapterObject, default: EngineName) -> SecretKeyRef | None:
    """The key of the service that computes the adapter's steps, if one does."""
    tinker = engine_of(adapter, default).tinker
    return tinker.api_key_secret_ref if tinker is not None else None
