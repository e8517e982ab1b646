"""How far an attempt is, read from its batch Job and its pods."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from pydantic import ValidationError

from claas_crds.contract import TrainerResult
from claas_operator.core import BatchJob, Pod
from claas_operator.world import Attempt, AttemptState


def describe_attempt(name: str, batch_job: BatchJob | None, pods: Sequence[Pod]) -> Attempt:
    """How far an attempt is, from its batch Job and its pods."""
    alive = any(not pod.ended for pod in pods)
    if batch_job is None or batch_job.metadata.deletion_timestamp is not None:
        return Attempt(name=name, state=AttemptState.ABSENT, alive=alive)
    # An earlier batch Job of this name may have left a pod behind: what became of that one says nothing here.
    owner = batch_job.metadata.uid
    pods = [pod for pod in pods if any(reference.uid == owner for reference in pod.metadata.owner_references)]
    pod = max(pods, key=lambda pod: pod.metadata.creation_timestamp or datetime.min.replace(tzinfo=UTC), default=None)
    if pod is None:
        ended = batch_job.ended_because
        state = AttemptState.LOST if ended else AttemptState.RUNNING
        return Attempt(name=name, state=state, alive=alive, message=ended or "The trainer's pod is being made")
    if not pod.ended:
        return Attempt(
            name=name, state=AttemptState.RUNNING, alive=True, pod=pod.metadata.name, message=_waiting(pod)
        )
    ended_as = pod.terminated
    return Attempt(
        name=name,
        state=AttemptState.SUCCEEDED if pod.status.phase == "Succeeded" else AttemptState.FAILED,
        alive=False,
        pod=pod.metadata.name,
        result=_result(ended_as.message) if ended_as else None,
        exit_code=ended_as.exit_code if ended_as else None,
        message=" ".join(
            part for part in (ended_as.reason if ended_as else "", pod.status.reason, pod.status.message) if part
        ),
        finished_at=ended_as.finished_at if ended_as else None,
    )


def _waiting(pod: Pod) -> str:
    """Why a pod does not run yet: unschedulable, image can't be pulled, volume missing."""
    for condition in pod.status.conditions:
        if condition.type == "PodScheduled" and condition.status == "False":
            return f"{condition.reason}: {condition.message}"
    for status in pod.status.container_statuses:
        if status.state.waiting is not None and status.state.waiting.reason not in ("", "ContainerCreating"):
            return f"{status.state.waiting.reason}: {status.state.waiting.message}"
    return ""


def _result(message: str) -> TrainerResult | None:
    try:
        return TrainerResult.model_validate_json(message)
    except ValidationError:
        return None
