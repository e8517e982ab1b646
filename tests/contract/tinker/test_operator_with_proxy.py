"""The operator asks and tells the real inference proxy as it does a vLLM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from claas_crds.v1alpha1.conditions import AdapterCondition, AdapterReason, condition_of
from claas_crds.v1alpha1.engine import EngineName
from claas_crds.v1alpha1.serving import HandoverKind, Probe
from claas_kube.objects.resources import AdapterObject
from claas_operator.clients.servers import Credentials, ask_state, forget, serve, verify
from claas_operator.plan.adapter.adapter import plan_adapter
from claas_operator.plan.engine.choice import needs_of
from claas_operator.plan.server.handover_choice import choose_handover, server_of
from claas_operator.plan.world import ProxyState, ServerPod, ServerState
from tests.builders.world import adapter_world, vllm_pod
from tests.contract.tinker.proxy_server import BASE_MODEL, SERVED_NAME, TOKEN
from tests.contract.tinker.proxy_site import ProxySite
from tests.unit.operator.plan.adapter.test_proxy import proxied

pytestmark = pytest.mark.contract

CREDENTIALS = Credentials(TOKEN, None)
Make = Callable[..., ProxySite]


def pod_of(site: ProxySite, server: ServerState) -> ServerPod:
    return replace(vllm_pod("proxy-0", server=server), url=site.proxy.url, storage_path=str(site.proxy.storage))


def served_as_there(versions: tuple[int, ...]) -> AdapterObject:
    found = proxied(versions)
    model = found.spec.model.model_copy(update={"name": BASE_MODEL})
    serving = found.spec.serving.model_copy(update={"served_name": SERVED_NAME})
    return found.model_copy(update={"spec": found.spec.model_copy(update={"model": model, "serving": serving})})


async def test_the_operator_sees_the_version_that_the_proxy_took_by_itself_and_finds_nothing_to_do(
    new_site: Make,
) -> None:
    site = new_site()
    site.publish(0)
    site.publish(1)
    site.proxy.launch().wait_until_ready()
    state = await ask_state(site.proxy.url, SERVED_NAME, CREDENTIALS)
    assert (state.reachable, state.refused, state.asleep, state.companion) == (True, False, False, True)
    assert (state.loaded_version, state.loaded_path) == (1, str(site.folder(1)))
    assert (state.persisted, state.companion_supported, state.remnants) == (True, True, False)
    adapter = served_as_there((0, 1))
    pod = pod_of(site, state)
    assert state.traits is not None
    needs = needs_of(adapter, EngineName.LOCAL)
    world = replace(
        adapter_world(
            adapter,
            pods=(pod,),
            handover=choose_handover(adapter, needs, None, (state.traits,)),
            server=server_of(adapter, None, (state.traits,)),
        ),
        engine=EngineName.TINKER,
        proxy=ProxyState(current=True),
    )
    plan = plan_adapter(world)
    ready = condition_of(plan.status.conditions, AdapterCondition.READY)
    assert ready is not None
    assert (ready.status, ready.reason) == ("True", AdapterReason.SERVING), ready.message
    assert plan.status.handover is HandoverKind.NONE
    companion = condition_of(plan.status.conditions, AdapterCondition.COMPANION)
    assert companion is not None
    assert companion.reason == AdapterReason.COMPANION_FOUND


async def test_the_operator_puts_a_version_into_service_verifies_it_and_takes_the_name_out(new_site: Make) -> None:
    site = new_site()
    site.publish(0)
    site.proxy.launch().wait_until_ready()
    path = str(site.publish(2))
    assert await serve(site.proxy.url, CREDENTIALS, SERVED_NAME, 2, path, Probe())
    state = await ask_state(site.proxy.url, SERVED_NAME, CREDENTIALS)
    assert (state.loaded_version, state.loaded_path, state.verified) == (2, path, True)
    assert not await verify(site.proxy.url, CREDENTIALS, SERVED_NAME, Probe())
    await forget(site.proxy.url, CREDENTIALS, SERVED_NAME)
    assert (await ask_state(site.proxy.url, SERVED_NAME, CREDENTIALS)).loaded_version is None


async def test_a_wrong_control_token_is_told_as_that_of_a_vllm(new_site: Make) -> None:
    site = new_site()
    site.publish(0)
    site.proxy.launch().wait_until_ready()
    state = await ask_state(site.proxy.url, SERVED_NAME, Credentials("another", None))
    assert (state.reachable, state.refused) == (True, True)
