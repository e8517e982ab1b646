"""Plan for a LoraAdapter: make its initial version, keep the desired version in every vLLM pod, report its state."""

from __future__ import annotations

from dataclasses import dataclass

from claas_crds.v1alpha1.conditions import AdapterReason
from claas_crds.v1alpha1.lora_adapter import LoraAdapterStatus
from claas_crds.v1alpha1.version import AdapterVersion
from claas_operator.plan.actions import Action, ApplyCompanion, Note, WriteLease, WriteServedName
from claas_operator.plan.adapter.adapter_conditions import write_conditions
from claas_operator.plan.adapter.adoption import Adoption, plan_adoption, without
from claas_operator.plan.adapter.engine import engine_so_far
from claas_operator.plan.adapter.initial import initial_version_actions
from claas_operator.plan.adapter.proxy import proxy_actions
from claas_operator.plan.adapter.readiness import Readiness
from claas_operator.plan.adapter.ready_checks import readiness_of
from claas_operator.plan.adapter.replicas import (
    failed_load,
    ready_replicas,
    replica_of,
    served_version,
    serving_actions,
)
from claas_operator.plan.conditions import ConditionDraft
from claas_operator.plan.lineage.history import with_served
from claas_operator.plan.lineage.lineage import Lineage
from claas_operator.plan.modal.serving import (
    modal_actions,
    modal_replica,
    rejection_note,
    rest_left,
    with_refusal,
)
from claas_operator.plan.serving_lease import ServedName, ServedRecord, new_lease
from claas_operator.plan.world import AdapterWorld

SOON_SECONDS = 2.0
HEAL_SECONDS = 10.0
HARDLY_SECONDS = 0.1


@dataclass(frozen=True)
class AdapterPlan:
    """Actions, the new status, Events, and the seconds until the next pass (None: on an event or resync)."""

    actions: tuple[Action, ...]
    status: LoraAdapterStatus
    notes: tuple[Note, ...]
    requeue_seconds: float | None
    news: tuple[Note, ...] = ()
    """Events about versions, to be recorded once they are in status."""


def plan_adapter(world: AdapterWorld) -> AdapterPlan:
    """The plan for one LoraAdapter."""
    actions: list[Action] = []
    in_your_pods = world.proxy is None and not world.adapter.outside_cluster
    if in_your_pods and not world.companion_current:
        actions.append(ApplyCompanion())
    adoption = plan_adoption(world)
    lineage = _lineage(world, adoption)
    news = adoption.notes
    if (refused := with_refusal(world, lineage)) is not None:
        lineage = _lineage(world, adoption, refused)
        news = (*news, rejection_note(world, refused))
    desired = lineage.desired
    actions.extend(proxy_actions(world, has_version=lineage.head is not None))
    actions.extend(initial_version_actions(world, lineage.head))
    actions.extend(_lease_actions(world, desired, adoption))
    actions.extend(adoption.actions)
    # During a step of this adapter its trainer decides which version the pods serve. The same holds until the version
    # of a deleted job is accounted for, so that a version that clients have seen is not withdrawn.
    open_step = world.running_job is not None or adoption.pending is not None
    actions.extend(serving_actions(world, desired, open_step))
    actions.extend(modal_actions(world, desired))
    replicas = tuple(replica_of(world, pod, desired, open_step) for pod in world.pods)
    if world.modal_server is not None:
        replicas = (modal_replica(world, world.modal_server, desired),)
    readiness = readiness_of(world, lineage, replicas)
    draft = ConditionDraft(world.now, world.adapter.metadata.generation, list(world.adapter.status.conditions))
    write_conditions(draft, world, readiness, replicas)
    served = served_version(world, replicas)
    status = world.adapter.status.model_copy(
        update={
            "observed_generation": world.adapter.metadata.generation,
            "conditions": draft.conditions,
            "lora_id": world.adapter.lora_id,
            "served_name": world.adapter.served_name,
            "served_version": served,
            "latest_version": lineage.head.number if lineage.head else None,
            "versions": with_served(lineage.remembered(), served),
            "replicas": list(replicas),
            "handover": world.handover.kind,
            "handover_message": world.handover.message,
            "ready_replicas": ready_replicas(world, replicas),
            "serving_url": _serving_url(world),
            "current_job": world.running_job,
            "engine": engine_so_far(world) or (world.engine if lineage.head is not None else None),
        }
    )
    requeue = _requeue_seconds(world, readiness, adoption, desired)
    return AdapterPlan(tuple(actions), status, tuple(draft.notes), requeue, news)


def _requeue_seconds(
    world: AdapterWorld, readiness: Readiness, adoption: Adoption, desired: AdapterVersion | None
) -> float | None:
    if adoption.pending is not None or adoption.settled is not None:
        return SOON_SECONDS
    if any(pod.server is not None and pod.server.asleep for pod in world.pods):
        return SOON_SECONDS
    if desired is not None and world.modal is not None and not readiness.ready:
        rest = rest_left(world)
        return HEAL_SECONDS if rest is None else min(HEAL_SECONDS, max(HARDLY_SECONDS, rest))
    if readiness.reason in (AdapterReason.LOAD_FAILED, AdapterReason.ADAPTER_NOT_APPLIED):
        failures = [failure for pod in world.pods if (failure := failed_load(world, pod, desired)) is not None]
        soonest = min((failure.retry_at for failure in failures), default=world.now)
        return min(HEAL_SECONDS, max(SOON_SECONDS, (soonest - world.now).total_seconds()))
    if readiness.ready:
        return None
    return HEAL_SECONDS if readiness.stalled else SOON_SECONDS


def _serving_url(world: AdapterWorld) -> str | None:
    """Where a server on Modal answers, as far as it was found; the last known address until then."""
    if world.modal is None:
        return None
    return world.modal.url or world.adapter.status.serving_url


def _lineage(world: AdapterWorld, adoption: Adoption, *refused: AdapterVersion) -> Lineage:
    """The versions in status, the initial one, those that jobs report, and one that was found. `refused` on Modal."""
    initial = world.init.result.version if world.init.result is not None else None
    found = (each for each in (initial, adoption.version, *world.products) if each)
    return Lineage.of(world.adapter.status.versions, found, (*world.rejected, *refused))


def _lease_actions(world: AdapterWorld, desired: AdapterVersion | None, adoption: Adoption) -> list[Action]:
    """What will be served is written down before it is, so that it can be taken out of service without the adapter,
    and a job that is accounted for is forgotten."""
    namespace, deployment = world.adapter.metadata.namespace, world.adapter.deployment_name
    actions: list[Action] = []
    served_here = world.deployment_found or world.modal_server is not None
    if desired is not None and world.name_taken_by is None and served_here:
        record = _served_record(world)
        earlier = world.lease.served if world.lease is not None else {}
        stands = world.served.record if world.served is not None else earlier.get(world.adapter.served_name)
        if stands != record:
            blank = ServedName(
                namespace=namespace, deployment=deployment, served_name=world.adapter.served_name, record=record
            )
            actions.append(WriteServedName((world.served or blank).model_copy(update={"record": record})))
        if world.lease is None:
            # Passes over it take out of service what has lost its adapter.
            actions.append(WriteLease(new_lease(namespace, deployment)))
    before = world.steps_lease
    if before is not None and (after := without(before, adoption.settled)) != before:
        actions.append(WriteLease(after))
    return actions


def _served_record(world: AdapterWorld) -> ServedRecord:
    serving = world.adapter.spec.serving
    return ServedRecord(
        adapter_name=world.adapter.metadata.name,
        adapter_uid=world.adapter.metadata.uid,
        port=serving.port,
        scheme=serving.scheme,
        control_token=world.adapter.control_token,
        api_key=serving.api_key_secret_ref,
        tls=serving.tls,
        modal=world.modal_server.place if world.modal_server is not None else None,
    )
