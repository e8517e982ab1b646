"""Checks before anything is made for the adapter that the servers' settings allow serving it."""

from __future__ import annotations

from datetime import timedelta

from claas_crds.v1alpha1.conditions import AdapterReason
from claas_crds.v1alpha1.tls import Scheme
from claas_operator.plan.adapter.readiness import Readiness
from claas_operator.plan.server.traits import RUNTIME_LORA_VARIABLE
from claas_operator.plan.world import AdapterWorld

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM accepts for --max-lora-rank."""
_PACKED = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv_proj"),
    **dict.fromkeys(("gate_proj", "up_proj"), "gate_up_proj"),
}
"""Names of layers that most of vLLM's models hold in one."""
SECRET_SYNC = timedelta(seconds=180)
"""How long the copy of a Secret in a pod can be older than the Secret: the kubelet's period and its cache."""


def unfit(world: AdapterWorld) -> Readiness | None:
    """A server refuses the token, or its settings do not allow serving the adapter."""
    return refused(world) or misconfigured(world)


def misconfigured(world: AdapterWorld) -> Readiness | None:
    """A server's settings do not allow serving the adapter."""
    wrong = misconfiguration(world)
    return None if wrong is None else Readiness(False, AdapterReason.SERVER_MISCONFIGURED, wrong)


def refused(world: AdapterWorld) -> Readiness | None:
    """A server refuses the operator's token or API key."""
    pod = next((pod for pod in world.pods if pod.server is not None and pod.server.refused), None)
    if pod is None:
        return None
    said = f"Pod {pod.name}: {pod.server.error if pod.server else ''}"
    changed = world.secrets.changed
    if changed is None or world.now - changed > SECRET_SYNC:
        return Readiness(False, AdapterReason.CONTROL_REFUSED, said)
    younger = "; the Secret changed a moment ago, and the pod's copy of it follows within three minutes"
    return Readiness(False, AdapterReason.CONTROL_REFUSED, said + younger, passes=True)


def misconfiguration(world: AdapterWorld) -> str | None:
    """What to change in vLLM or the spec so that the adapter can be served; None: no known problem."""
    if world.pods and all(pod.server is not None and pod.server.loaded_version is not None for pod in world.pods):
        return None  # It is served already.
    problems = [*_of_scheme(world), *_of_adapters(world), *_of_names(world)]
    return "; ".join(problems) or None


def _of_scheme(world: AdapterWorld) -> list[str]:
    """Checks the scheme. A server that answers may be behind a proxy that terminates TLS."""
    answered = any(pod.server is not None and pod.server.reachable for pod in world.pods)
    if world.server.tls and not answered and world.adapter.spec.serving.scheme is Scheme.HTTP:
        return ["vLLM runs with --ssl-certfile: set spec.serving.scheme to https, and its CA in spec.serving.tls"]
    return []


def _of_adapters(world: AdapterWorld) -> list[str]:
    server, rank = world.server, world.adapter.spec.lora.rank
    problems = []
    if server.lora_enabled is False:
        problems.append("vLLM takes no adapters: start it with --enable-lora")
    elif server.max_lora_rank is not None and server.max_lora_rank < rank:
        fitting = next(each for each in _RANKS if each >= rank)
        problems.append(
            f"spec.lora.rank is {rank} and vLLM's --max-lora-rank {server.max_lora_rank}: start it with"
            f" --max-lora-rank {fitting}"
        )
    left_out = _left_out(world)
    if left_out:
        problems.append(
            f"vLLM applies adapters to {', '.join(server.lora_modules or ())} alone, and not to {', '.join(left_out)}"
            " of spec.lora.targetModules: start it without --lora-target-modules, or with them"
        )
    if server.loads_adapters is False:
        problems.append(f"vLLM loads no adapters while it runs: set {RUNTIME_LORA_VARIABLE}=1 in its container")
    return problems


def _left_out(world: AdapterWorld) -> list[str]:
    """Target modules of the adapter to which vLLM would not apply it."""
    allowed, wanted = world.server.lora_modules, world.adapter.spec.lora.target_modules
    if not allowed or not isinstance(wanted, list):
        return []
    names = [name.rpartition(".")[2] for name in wanted]
    return [name for name in names if not {name, _PACKED.get(name, name)} & set(allowed)]


def _of_names(world: AdapterWorld) -> list[str]:
    listed = next((pod.server.base_models for pod in world.pods if pod.server and pod.server.base_models), None)
    names = listed or world.server.served_model_names
    if names is None:
        return []
    base, served = world.adapter.spec.model.name, world.adapter.served_name
    problems = []
    if base not in names:
        problems.append(
            f"spec.model.name is {base} and vLLM serves its base model as {', '.join(names)}: start it with"
            f" --served-model-name {base}, or make the adapter anew with the name that it has"
        )
    if served in names:
        problems.append(
            f"{served} is the name of vLLM's base model: choose another name for the adapter in"
            " spec.serving.servedName"
        )
    return problems


def too_few_slots(world: AdapterWorld) -> str | None:
    """Why a swap may delay requests: the old and the new version need a slot each."""
    slots = world.server.max_loras
    needed = max(1, world.adapters_here) + 1
    if slots is None or slots >= needed:
        return None
    return f"vLLM's --max-loras is {slots}, so requests queue at a swap: start it with --max-loras {needed}"
