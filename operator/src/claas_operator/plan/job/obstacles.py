"""Whether a step can start now: what stands in its way, and the grant that it gets when nothing does."""

from __future__ import annotations

from dataclasses import dataclass

from claas_crds.v1alpha1.conditions import (
    AdapterCondition,
    AdapterReason,
    JobReason,
    condition_of,
    is_true,
)
from claas_crds.v1alpha1.distill_job import CompletionPoint
from claas_crds.v1alpha1.lora_adapter import HandoverKind
from claas_operator.plan.actions import WriteLease
from claas_operator.plan.job.recovery import next_attempt
from claas_operator.plan.server.unready import no_pod_because
from claas_operator.plan.serving_lease import Grant, new_lease
from claas_operator.plan.world import JobWorld


@dataclass(frozen=True)
class Obstacle:
    """Why no step can be taken at the moment."""

    reason: JobReason
    message: str


def obstacle(world: JobWorld) -> Obstacle | None:
    """Why a step can't start now; None if it can."""
    adapter = world.adapter
    assert adapter is not None
    name, conditions = adapter.metadata.name, adapter.status.conditions
    ready = condition_of(conditions, AdapterCondition.READY)
    if world.lineage.head is None:
        return not_ready(
            f"LoraAdapter {name} has no version yet: {ready.message if ready else 'it has not been looked at yet'}"
        )
    stalled = condition_of(conditions, AdapterCondition.STALLED)
    if stalled is not None and is_true([stalled], AdapterCondition.STALLED):
        return not_ready(f"LoraAdapter {name} is stalled: {stalled.message}")
    if ready is not None and ready.reason in (AdapterReason.LOAD_FAILED, AdapterReason.ADAPTER_NOT_APPLIED):
        # The next version would be made for nothing, and refused like this one.
        return not_ready(f"vLLM does not take the newest version of LoraAdapter {name}: {ready.message}")
    if world.handover.kind is None:
        return Obstacle(JobReason.NO_HANDOVER, world.handover.message)
    return unaccounted(world) or _pods_in_the_way(world)


def unaccounted(world: JobWorld) -> Obstacle | None:
    """Whether a job that is gone may have left a version, which this step would have to start from."""
    if world.lease is None or world.adapter is None:
        return None
    found = world.lease.unaccounted_of(world.adapter.metadata.uid)
    if found is None:
        return None
    return not_ready(f"DistillJob {found[1].job_name} is gone, and the volume is being looked at for its version")


def _pods_in_the_way(world: JobWorld) -> Obstacle | None:
    adapter = world.adapter
    assert adapter is not None
    for pod in world.pods:
        if pod.server is None or world.handover.kind is not HandoverKind.SLEEP:
            continue
        if pod.server.asleep:
            # A grant would name it, and the operator wakes what may have been paused: this sleep is somebody else's.
            return not_ready(f"vLLM in pod {pod.name} is asleep or paused, and not by a DistillJob: wake it")
    refusing = next((pod for pod in world.pods if pod.server is not None and pod.server.refused), None)
    if refusing is not None and refusing.server is not None:
        return not_ready(f"pod {refusing.name}: {refusing.server.error}")
    if world.unsettled is not None:
        return not_ready(world.unsettled)
    if any(pod.ready for pod in world.pods):
        return None
    deployment = adapter.spec.serving.deployment_ref.name
    if world.pods or world.wanted_replicas:
        return not_ready(no_pod_because(deployment, None, [(pod.name, pod.trouble) for pod in world.pods]))
    if world.job.spec.complete_when is CompletionPoint.PUBLISHED:
        return None
    return not_ready(
        f"Deployment {deployment} is scaled to zero, so nothing would serve the version: scale it up, or set"
        " spec.completeWhen to Published"
    )


def not_ready(message: str) -> Obstacle:
    """The adapter, or what serves it, is not ready."""
    return Obstacle(JobReason.ADAPTER_NOT_READY, message)


def grant_lease(world: JobWorld) -> WriteLease:
    """Give the lease to the job's next attempt, for the pods that are ready now. Only without an obstacle."""
    adapter = world.adapter
    assert adapter is not None
    assert world.handover.kind is not None
    serving = adapter.spec.serving
    grant = Grant(
        job_name=world.job.metadata.name,
        job_uid=world.job.metadata.uid,
        adapter_name=adapter.metadata.name,
        adapter_uid=adapter.metadata.uid,
        attempt=next_attempt(world),
        pods=[pod.as_target() for pod in world.pods if pod.ready and pod.url],
        handover=world.handover.kind,
        control_token=serving.control_token_secret_ref,
        api_key=serving.api_key_secret_ref,
        tls=serving.tls,
        max_pause_seconds=serving.max_pause_seconds,
        granted_at=world.now,
    )
    lease = world.lease or new_lease(adapter.metadata.namespace, serving.deployment_ref.name)
    return WriteLease(lease.model_copy(update={"grant": grant, "last_turn": adapter.metadata.name}))
