"""Obstacles of a step, and the grant that it gets if there are none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from claas_contract.jobs import JobIdentity
from claas_crds.v1alpha1.conditions import (
    AdapterCondition,
    AdapterReason,
    Condition,
    JobReason,
    condition_of,
    is_true,
)
from claas_crds.v1alpha1.distill_job import CompletionPoint
from claas_crds.v1alpha1.serving import HandoverKind
from claas_operator.plan.actions import WriteLease
from claas_operator.plan.checks import first_answer
from claas_operator.plan.job.recovery import next_attempt
from claas_operator.plan.server.unready import no_pod_because
from claas_operator.plan.serving_lease import Grant, new_adapter_lease, new_lease
from claas_operator.plan.world import JobWorld


@dataclass(frozen=True)
class Obstacle:
    """Why no step can start at the moment."""

    reason: JobReason
    message: str


def obstacle(world: JobWorld) -> Obstacle | None:
    """Why a step can't start now, by the first check in `OBSTACLES` that applies; None if it can."""
    return first_answer(OBSTACLES, world)


def no_version(world: JobWorld) -> Obstacle | None:
    """First, because there is nothing to start from."""
    if world.lineage.head is not None:
        return None
    ready = _ready(world)
    why = ready.message if ready else "it has not been looked at yet"
    return not_ready(f"LoraAdapter {_name(world)} has no version yet: {why}")


def adapter_stalled(world: JobWorld) -> Obstacle | None:
    """Before obstacles that may pass by themselves, because this one needs a person."""
    stalled = condition_of(_conditions(world), AdapterCondition.STALLED)
    if stalled is None or not is_true([stalled], AdapterCondition.STALLED):
        return None
    return not_ready(f"LoraAdapter {_name(world)} is stalled: {stalled.message}")


def head_not_served(world: JobWorld) -> Obstacle | None:
    """Before the hand-over: the next version would be rejected like this one."""
    ready = _ready(world)
    if ready is None or ready.reason not in (AdapterReason.LOAD_FAILED, AdapterReason.ADAPTER_NOT_APPLIED):
        return None
    return not_ready(f"vLLM does not take the newest version of LoraAdapter {_name(world)}: {ready.message}")


def no_handover(world: JobWorld) -> Obstacle | None:
    """Before the pods, because the hand-over decides which of them matter."""
    return Obstacle(JobReason.NO_HANDOVER, world.handover.message) if world.handover.kind is None else None


def unaccounted(world: JobWorld) -> Obstacle | None:
    """A deleted job may have left a version, from which this step would have to start. Before the pods, because
    serving does not change until that is known either."""
    if world.lease is None or world.adapter is None:
        return None
    found = world.lease.unaccounted_of(world.adapter.metadata.uid)
    if found is None:
        return None
    return not_ready(f"DistillJob {found[1].job_name} is gone, and the volume is being looked at for its version")


def asleep_already(world: JobWorld) -> Obstacle | None:
    """The operator wakes all pods of a grant, and this pod was put to sleep by somebody else."""
    if world.handover.kind is not HandoverKind.SLEEP:
        return None
    pod = next((pod for pod in world.pods if pod.server is not None and pod.server.asleep), None)
    if pod is None:
        return None
    return not_ready(f"vLLM in pod {pod.name} is asleep or paused, and not by a DistillJob: wake it")


def pod_refusing(world: JobWorld) -> Obstacle | None:
    """The server would refuse a trainer too."""
    pod = next((pod for pod in world.pods if pod.server is not None and pod.server.refused), None)
    return None if pod is None or pod.server is None else not_ready(f"pod {pod.name}: {pod.server.error}")


def pods_unsettled(world: JobWorld) -> Obstacle | None:
    """After the checks of single pods, because it passes by itself."""
    return None if world.unsettled is None else not_ready(world.unsettled)


def no_pod(world: JobWorld) -> Obstacle | None:
    """Last: no pod is ready, for no reason found above. Servers outside the cluster have none, and start when they
    are asked."""
    if world.adapter is None or world.adapter.outside_cluster or any(pod.ready for pod in world.pods):
        return None
    deployment = world.adapter.deployment_name
    if world.pods or world.wanted_replicas:
        return not_ready(no_pod_because(deployment, None, [(pod.name, pod.trouble) for pod in world.pods]))
    if world.job.spec.complete_when is CompletionPoint.PUBLISHED:
        return None
    return not_ready(
        f"Deployment {deployment} is scaled to zero, so nothing would serve the version: scale it up, or set"
        " spec.completeWhen to Published"
    )


OBSTACLES: tuple[Callable[[JobWorld], Obstacle | None], ...] = (
    no_version,
    adapter_stalled,
    head_not_served,
    no_handover,
    unaccounted,
    asleep_already,
    pod_refusing,
    pods_unsettled,
    no_pod,
)
"""In this order."""


def not_ready(message: str) -> Obstacle:
    """The adapter or its servers are not ready."""
    return Obstacle(JobReason.ADAPTER_NOT_READY, message)


def grant_lease(world: JobWorld) -> WriteLease:
    """Grant the lease to the job's next attempt, for the pods that are ready now. Only without an obstacle."""
    adapter = world.adapter
    assert adapter is not None
    assert world.handover.kind is not None
    serving = adapter.spec.serving
    grant = Grant(
        jobs=[
            JobIdentity(
                namespace=world.job.metadata.namespace,
                name=world.job.metadata.name,
                uid=world.job.metadata.uid,
                attempt=next_attempt(world),
            )
        ],
        adapter_name=adapter.metadata.name,
        adapter_uid=adapter.metadata.uid,
        pods=[pod.as_target() for pod in world.pods if pod.ready and pod.url],
        handover=world.handover.kind,
        control_token=adapter.control_token,
        api_key=serving.api_key_secret_ref,
        tls=serving.tls,
        max_pause_seconds=serving.max_pause_seconds,
        granted_at=world.now,
    )
    changes = {"grant": grant, "last_turn": adapter.metadata.name}
    if world.places is not None:
        lease = world.lease or new_adapter_lease(adapter.metadata.namespace, adapter.metadata.name)
        return WriteLease(lease.model_copy(update={**changes, "last_granted": world.now}))
    lease = world.lease or new_lease(adapter.metadata.namespace, adapter.deployment_name)
    return WriteLease(lease.model_copy(update=changes))


def _conditions(world: JobWorld) -> list[Condition]:
    return world.adapter.status.conditions if world.adapter is not None else []


def _ready(world: JobWorld) -> Condition | None:
    return condition_of(_conditions(world), AdapterCondition.READY)


def _name(world: JobWorld) -> str:
    return world.job.spec.adapter_ref.name
