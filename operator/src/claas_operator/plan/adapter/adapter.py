"""What to do about a LoraAdapter: make its first version, keep the served one in every vLLM pod, tell its state."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from posixpath import normpath

from claas_contract.result import PublishedVersion
from claas_crds.v1alpha1.conditions import AdapterCondition, AdapterReason, is_true
from claas_crds.v1alpha1.lora_adapter import (
    AdapterVersion,
    LoraAdapterStatus,
    Replica,
    ReplicaState,
)
from claas_operator.plan import naming
from claas_operator.plan.actions import (
    Action,
    ApplyCompanion,
    CreateInit,
    Note,
    PutInService,
    VerifyServed,
    WriteLease,
)
from claas_operator.plan.adapter.adoption import Adoption, plan_adoption, without
from claas_operator.plan.adapter.server_fitness import misconfiguration
from claas_operator.plan.adapter.verdict import Verdict, judge_adapter, unfit
from claas_operator.plan.conditions import ConditionDraft
from claas_operator.plan.job_draft import STOP_GRACE_SECONDS, end, retire
from claas_operator.plan.server.load_failures import LoadFailure
from claas_operator.plan.serving_lease import ServedRecord, new_lease
from claas_operator.plan.versions import history, newest, with_served
from claas_operator.plan.world import (
    AdapterWorld,
    ServerPod,
    ServerState,
    TrainerStart,
    TrainerState,
)

INIT_RETRY_SECONDS = 30
SOON_SECONDS = 2.0
HEAL_SECONDS = 10.0


@dataclass(frozen=True)
class AdapterPlan:
    """Actions, the status to be, Events, and when to look again (None: on an event or resync)."""

    actions: tuple[Action, ...]
    status: LoraAdapterStatus
    notes: tuple[Note, ...]
    requeue_seconds: float | None
    news: tuple[Note, ...] = ()
    """Events about versions, to be told once they stand in status."""


def plan_adapter(world: AdapterWorld) -> AdapterPlan:
    """The plan for one LoraAdapter."""
    actions: list[Action] = []
    if not world.companion_current:
        actions.append(ApplyCompanion())
    adoption = plan_adoption(world)
    versions = _versions(world, adoption.version)
    latest = newest(versions)
    actions.extend(_init_actions(world, latest))
    actions.extend(_lease_actions(world, latest, adoption))
    actions.extend(adoption.actions)
    # While a step of this adapter is under way, its trainer decides which version the pods serve. The same holds
    # until it is known what a job left that is gone: what clients have seen is not taken back in between.
    open_step = world.running_job is not None or adoption.pending is not None
    actions.extend(_serving_actions(world, latest, open_step))
    replicas = [_replica(world, pod, latest, open_step) for pod in world.pods]
    verdict = judge_adapter(world, latest, replicas)
    draft = ConditionDraft(world.now, world.adapter.metadata.generation, list(world.adapter.status.conditions))
    _write_conditions(draft, world, verdict, replicas)
    served_version = _served_version(world, replicas)
    versions = with_served(versions, served_version)
    status = world.adapter.status.model_copy(
        update={
            "observed_generation": world.adapter.metadata.generation,
            "conditions": draft.conditions,
            "lora_id": world.adapter.lora_id,
            "served_name": world.adapter.served_name,
            "served_version": served_version,
            "latest_version": latest.number if latest else None,
            "versions": versions,
            "replicas": replicas,
            "handover": world.handover.kind,
            "handover_message": world.handover.message,
            "ready_replicas": _ready_replicas(world, replicas),
            "current_job": world.running_job,
        }
    )
    requeue = None if verdict.ready else (HEAL_SECONDS if verdict.stalled else SOON_SECONDS)
    if verdict.reason in (AdapterReason.LOAD_FAILED, AdapterReason.ADAPTER_NOT_APPLIED):
        failures = [failure for pod in world.pods if (failure := _failure(world, pod, latest)) is not None]
        soonest = min((failure.retry_at for failure in failures), default=world.now)
        requeue = min(HEAL_SECONDS, max(SOON_SECONDS, (soonest - world.now).total_seconds()))
    if any(pod.server is not None and pod.server.asleep for pod in world.pods):
        requeue = SOON_SECONDS
    if adoption.pending is not None or adoption.settled is not None:
        requeue = SOON_SECONDS
    return AdapterPlan(tuple(actions), status, tuple(draft.notes), requeue, adoption.notes)


def _versions(world: AdapterWorld, adopted: PublishedVersion | None) -> list[AdapterVersion]:
    """Versions in status, the initial one, those that jobs report and one that was found."""
    initial = world.init.result.version if world.init.result is not None else None
    found = (each for each in (initial, adopted, *world.products) if each)
    return history(world.adapter.status.versions, found, world.rejected)


def _init_actions(world: AdapterWorld, latest: AdapterVersion | None) -> list[Action]:
    init = world.init
    if latest is not None:
        return _let_init_go(world)
    if not world.claim_found or not world.secrets.usable:
        return []
    if init.state is TrainerState.ABSENT and unfit(world) is not None:
        return []  # Nobody could load it; what is wrong is told now, not when it was made.
    if init.state is TrainerState.ABSENT and not init.alive:
        return [CreateInit(naming.init_name(world.adapter.metadata))]
    if init.hindered and init.start is not None and _is_outdated(init.start, world.adapter.metadata.generation):
        return [end(init, 1, "the spec has changed since")]
    if init.state in (TrainerState.FAILED, TrainerState.LOST, TrainerState.SUCCEEDED):
        ended = init.finished_at
        if ended is None or world.now - ended > timedelta(seconds=INIT_RETRY_SECONDS):
            return [end(init, 1, "the initial version is tried again")]
    return []


def _is_outdated(start: TrainerStart, generation: int) -> bool:
    """Whether the trainer was made from an earlier spec; what keeps it from starting may be mended by now."""
    return start.generation is not None and start.generation != generation


def _let_init_go(world: AdapterWorld) -> list[Action]:
    """The first version stands in status: nothing of its trainer is needed any more."""
    init = world.init
    if world.adapter.status.latest_version is None or init.state in (TrainerState.ABSENT, TrainerState.RUNNING):
        return []
    if init.held_open:
        why = "its trainer has ended, and another container keeps its pod"
        return [end(init, STOP_GRACE_SECONDS, why)]
    return [] if init.retired else [retire(init, world.now)]


def _serving_actions(world: AdapterWorld, latest: AdapterVersion | None, open_step: bool) -> list[Action]:
    if latest is None or world.name_taken_by is not None or misconfiguration(world) is not None:
        return []
    actions: list[Action] = []
    for pod in world.pods:
        server = pod.server
        if server is None or not server.reachable or server.refused or server.asleep or pod.storage_path is None:
            continue
        failure = _failure(world, pod, latest)
        rests = failure is not None and world.now < failure.retry_at
        if server.loaded_version == latest.number and server.loaded_path == version_path(pod, latest.number):
            actions.extend(() if server.verified or rests else (VerifyServed(pod, latest.number),))
            continue
        if rests or (open_step and server.loaded_version is not None):
            continue
        actions.append(PutInService(pod, latest.number, version_path(pod, latest.number)))
    return actions


def _failure(world: AdapterWorld, pod: ServerPod, latest: AdapterVersion | None) -> LoadFailure | None:
    """Why the newest version could not be put into service in the pod; None where that was not tried by this spec, or
    has come about since."""
    failure, server = pod.load_failure, pod.server
    if failure is None or latest is None or server is None:
        return None
    if failure.version != latest.number or failure.generation != world.adapter.metadata.generation:
        return None
    return None if server.loaded_version == latest.number and server.verified else failure


def _lease_actions(world: AdapterWorld, latest: AdapterVersion | None, adoption: Adoption) -> list[Action]:
    """One write of the lease: what will be served is written down before it is, so that it can be taken out of
    service without the adapter, and a job that is accounted for is forgotten."""
    serving = world.adapter.spec.serving
    before = world.lease or new_lease(world.adapter.metadata.namespace, serving.deployment_ref.name)
    lease = without(before, adoption.settled)
    if latest is not None and world.name_taken_by is None and world.deployment_found:
        served = {**lease.served, world.adapter.served_name: _served_record(world)}
        lease = lease.model_copy(update={"served": served})
    return [] if lease == before else [WriteLease(lease)]


def _served_record(world: AdapterWorld) -> ServedRecord:
    serving = world.adapter.spec.serving
    return ServedRecord(
        adapter_name=world.adapter.metadata.name,
        adapter_uid=world.adapter.metadata.uid,
        port=serving.port,
        scheme=serving.scheme,
        control_token=serving.control_token_secret_ref,
        api_key=serving.api_key_secret_ref,
        tls=serving.tls,
    )


def version_path(pod: ServerPod, number: int) -> str:
    """A version's folder as the pod sees it."""
    return f"{(pod.storage_path or '').rstrip('/')}/versions/{number}"


def _replica(world: AdapterWorld, pod: ServerPod, latest: AdapterVersion | None, open_step: bool) -> Replica:
    server = pod.server
    if not pod.ready or server is None:
        return Replica(pod=pod.name, state=ReplicaState.NOT_READY, message=pod.trouble or None)
    version = _own_version(world, pod, server)
    if not server.reachable or server.refused:
        return Replica(pod=pod.name, version=version, state=ReplicaState.UNREACHABLE, message=server.error)
    if server.asleep:
        return Replica(pod=pod.name, version=version, state=ReplicaState.ASLEEP)
    failure = _failure(world, pod, latest)
    if failure is not None and failure.not_applied:
        return Replica(pod=pod.name, version=version, state=ReplicaState.NOT_APPLIED, message=failure.error)
    if latest is not None and version == latest.number:
        return Replica(pod=pod.name, version=version, state=ReplicaState.SERVING)
    if failure is not None:
        return Replica(pod=pod.name, version=version, state=ReplicaState.LOAD_FAILED, message=failure.error)
    if version is not None and open_step:
        return Replica(pod=pod.name, version=version, state=ReplicaState.SERVING)
    return Replica(pod=pod.name, version=version, state=ReplicaState.LOADING)


def _own_version(world: AdapterWorld, pod: ServerPod, server: ServerState) -> int | None:
    """The version of this adapter behind its served name; what somebody else serves under that name is none."""
    if world.name_taken_by is not None:
        return None
    number, path = server.loaded_version, server.loaded_path
    if number is None or path is None or pod.storage_path is None:
        return number
    return number if normpath(path) == normpath(version_path(pod, number)) else None


def _served_version(world: AdapterWorld, replicas: list[Replica]) -> int | None:
    """The version that every ready pod serves; while they differ or none is ready, what was said before."""
    versions = {replica.version for replica in replicas if replica.state is not ReplicaState.NOT_READY}
    if len(versions) == 1 and None not in versions:
        return versions.pop()
    return world.adapter.status.served_version if world.name_taken_by is None else None


def _ready_replicas(world: AdapterWorld, replicas: list[Replica]) -> str:
    serving = sum(replica.state is ReplicaState.SERVING for replica in replicas)
    return f"{serving}/{world.wanted_replicas}"


def _write_conditions(draft: ConditionDraft, world: AdapterWorld, verdict: Verdict, replicas: list[Replica]) -> None:
    stalled = verdict.stalled
    progressing = not verdict.ready and not stalled
    draft.set(AdapterCondition.READY, verdict.ready, verdict.reason, verdict.message, warning=stalled)
    # One Event for a change is enough: Ready tells it, the others follow from it.
    serving = [replica for replica in replicas if replica.state is ReplicaState.SERVING]
    draft.set(AdapterCondition.SERVED, bool(serving), verdict.reason, verdict.message, quiet=True)
    draft.set(
        AdapterCondition.RECONCILING,
        progressing,
        verdict.reason if progressing else AdapterReason.UP_TO_DATE,
        verdict.message if progressing else "Nothing is under way",
        quiet=True,
    )
    draft.set(
        AdapterCondition.STALLED,
        stalled,
        verdict.reason if stalled else AdapterReason.UP_TO_DATE,
        verdict.message if stalled else "Nothing is in the way",
        quiet=True,
    )
    _write_companion(draft, world)


def _write_companion(draft: ConditionDraft, world: AdapterWorld) -> None:
    reached = [pod for pod in world.pods if pod.server is not None and pod.server.reachable]
    refusing = next((pod for pod in reached if pod.server is not None and pod.server.refused), None)
    if refusing is not None and refusing.server is not None:
        message = f"Pod {refusing.name} does not let itself be asked: {refusing.server.error}"
        draft.set(AdapterCondition.COMPANION, None, AdapterReason.CONTROL_REFUSED, message, quiet=True)
        return
    asked = [pod.server for pod in reached if pod.server is not None]
    if not asked:
        if not is_true(draft.conditions, AdapterCondition.COMPANION):
            message = "No vLLM pod has answered yet"
            draft.set(AdapterCondition.COMPANION, None, AdapterReason.PENDING, message, quiet=True)
        return
    if not all(server.companion for server in asked):
        draft.set(
            AdapterCondition.COMPANION,
            False,
            AdapterReason.COMPANION_MISSING,
            "vLLM runs without the companion module: a swap makes requests fail for a moment, a restarted pod "
            "serves the base model until it is loaded again, and control routes are open to whoever may chat",
            warning=True,
        )
        return
    said = "The companion answers in every pod"
    if not all(server.persisted for server in asked):
        said += "; it can't write its alias folder, so a restarted pod waits for the operator"
    if not all(server.companion_supported for server in asked):
        said += "; this vLLM release is not one it was tested with"
    draft.set(AdapterCondition.COMPANION, True, AdapterReason.COMPANION_FOUND, said, quiet=True)
