"""The inference proxy: what is made of it and when, and what an adapter's status says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from claas_contract.outcome import FailureReason
from claas_contract.result import TrainerResult
from claas_crds.v1alpha1.conditions import AdapterCondition, AdapterReason, condition_of
from claas_crds.v1alpha1.engine import EngineName, EngineSpec
from claas_crds.v1alpha1.serving import Serving
from claas_kube.objects.resources import AdapterObject
from claas_operator.plan.actions import Action, ApplyCompanion, ApplyProxy, CreateInit, CreateProxyToken
from claas_operator.plan.adapter.adapter import plan_adapter
from claas_operator.plan.naming import init_name
from claas_operator.plan.world import ProxyState, TrainerJob, TrainerState
from tests.builders.world import adapter, adapter_world, published

REFUSAL = "training.teacher is ema: use frozen"


def proxied(versions: tuple[int, ...] = ()) -> AdapterObject:
    found = adapter(versions=versions, served=None, engine=EngineSpec.model_validate({"tinker": {}}))
    serving = Serving.model_validate({"tinkerProxy": {}})
    status = found.status.model_copy(update={"engine": EngineName.TINKER if versions else None})
    return found.model_copy(update={"spec": found.spec.model_copy(update={"serving": serving}), "status": status})


@pytest.mark.parametrize(
    ("versions", "state", "refusals", "made"),
    [
        ((), ProxyState(current=False, token_missing=True), (), (CreateProxyToken, CreateInit)),
        ((), ProxyState(current=False), (), (CreateInit,)),
        ((0,), ProxyState(current=False), (), (ApplyProxy,)),
        ((0,), ProxyState(current=True), (), ()),
        ((0,), ProxyState(current=False, taken_by="Deployment x"), (), ()),
        ((), ProxyState(current=False, token_missing=True), (REFUSAL,), ()),
        ((0,), ProxyState(current=False), (REFUSAL,), ()),
    ],
)
def test_a_proxy_is_made_once_there_is_a_version_and_mended_from_then_on(
    versions: tuple[int, ...], state: ProxyState, refusals: tuple[str, ...], made: tuple[type[Action], ...]
) -> None:
    world = replace(
        adapter_world(proxied(versions), deployment_found=False, companion_current=False),
        engine=EngineName.TINKER,
        proxy=state,
        refusals=refusals,
    )
    plan = plan_adapter(world)
    assert tuple(type(action) for action in plan.actions) == made
    assert ApplyCompanion not in made


@pytest.mark.parametrize(
    ("versions", "state", "reason", "stalled"),
    [
        ((), ProxyState(current=False), AdapterReason.INITIALISING, False),
        ((0,), ProxyState(current=True), AdapterReason.NO_READY_PODS, False),
        ((0,), ProxyState(current=False, taken_by="Deployment x"), AdapterReason.SERVER_MISCONFIGURED, True),
    ],
)
def test_a_proxy_without_its_deployment_is_awaited_and_not_missed(
    versions: tuple[int, ...], state: ProxyState, reason: AdapterReason, stalled: bool
) -> None:
    world = adapter_world(proxied(versions), deployment_found=False)
    world = replace(world, engine=EngineName.TINKER, proxy=state)
    ready = condition_of(plan_adapter(world).status.conditions, AdapterCondition.READY)
    found = condition_of(plan_adapter(world).status.conditions, AdapterCondition.STALLED)
    assert ready is not None
    assert found is not None
    assert (ready.status, ready.reason) == ("False", reason)
    assert found.status == ("True" if stalled else "False")


def test_settings_that_the_engine_cannot_follow_stall_the_adapter_by_name() -> None:
    world = replace(adapter_world(adapter(versions=())), refusals=(REFUSAL, "another"))
    plan = plan_adapter(world)
    stalled = condition_of(plan.status.conditions, AdapterCondition.STALLED)
    assert stalled is not None
    assert (stalled.status, stalled.reason) == ("True", AdapterReason.ENGINE_REFUSED)
    assert stalled.message == f"{REFUSAL}; another"
    assert not any(isinstance(action, CreateInit) for action in plan.actions)


@pytest.mark.parametrize(
    ("recorded", "versions", "engine", "refused"),
    [
        (None, (), EngineName.TINKER, False),
        (None, (0,), EngineName.LOCAL, False),
        # Versions of releases that recorded no engine are the local one's.
        (None, (0,), EngineName.TINKER, True),
        (EngineName.TINKER, (0,), EngineName.TINKER, False),
        (EngineName.TINKER, (0,), EngineName.LOCAL, True),
        (EngineName.LOCAL, (0,), EngineName.TINKER, True),
    ],
)
def test_an_adapter_stays_with_the_engine_of_its_versions(
    recorded: EngineName | None, versions: tuple[int, ...], engine: EngineName, refused: bool
) -> None:
    found = adapter(versions=versions)
    found = found.model_copy(update={"status": found.status.model_copy(update={"engine": recorded})})
    plan = plan_adapter(replace(adapter_world(found), engine=engine))
    ready = condition_of(plan.status.conditions, AdapterCondition.READY)
    assert ready is not None
    assert (ready.reason == AdapterReason.ENGINE_REFUSED) is refused
    assert plan.status.engine == (recorded or (EngineName.LOCAL if versions else None))


def test_the_engine_of_the_first_version_is_recorded_with_it() -> None:
    name = init_name(adapter().metadata)
    result = TrainerResult(succeeded=True, version=published(0, job=None))
    init = TrainerJob(name=name, state=TrainerState.SUCCEEDED, alive=False, result=result, exit_code=0)
    world = replace(adapter_world(adapter(versions=(), served=None), init=init), engine=EngineName.TINKER)
    assert plan_adapter(world).status.engine is EngineName.TINKER


@pytest.mark.parametrize(
    ("reason", "stalled"),
    [
        (FailureReason.CREDENTIALS_REFUSED, True),
        (FailureReason.BILLING_REQUIRED, True),
        (FailureReason.MODEL_RETIRED, True),
        (FailureReason.RATE_LIMITED, False),
        (FailureReason.SERVICE_UNREACHABLE, False),
    ],
)
def test_what_the_service_refused_a_first_version_for_is_told_and_stalls_where_somebody_has_to_act(
    reason: FailureReason, stalled: bool
) -> None:
    result = TrainerResult(succeeded=False, reason=reason, message="what to do")
    name = init_name(adapter().metadata)
    init = TrainerJob(name=name, state=TrainerState.FAILED, alive=False, result=result, exit_code=1)
    plan = plan_adapter(replace(adapter_world(proxied(), init=init), engine=EngineName.TINKER))
    ready = condition_of(plan.status.conditions, AdapterCondition.READY)
    found = condition_of(plan.status.conditions, AdapterCondition.STALLED)
    assert ready is not None
    assert found is not None
    assert f"{reason.value}: what to do" in ready.message
    assert (found.status == "True") is stalled


def test_an_adapter_that_names_no_engine_is_told_to_when_the_execution_mode_is_changed() -> None:
    left = adapter_world(adapter(engine=None))
    status = plan_adapter(replace(left, engine=EngineName.TINKER)).status
    ready = condition_of(status.conditions, AdapterCondition.READY)
    assert ready is not None
    assert ready.reason == AdapterReason.ENGINE_REFUSED
    assert "spec.engine is tinker by the operator's execution mode" in ready.message
    assert "Set it to `local: {}`" in ready.message
