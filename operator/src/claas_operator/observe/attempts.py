"""How far an attempt is, read from its batch Job and its pods.

Meshes, vaults and proxies add containers to the pod, some of which never end. An attempt is therefore judged by the
container named `trainer`, and by the pod only if that container has no state.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from pydantic import ValidationError

from claas_contract.result import TrainerResult
from claas_kube.objects.pods import Pod
from claas_kube.objects.workloads import BatchJob, Event
from claas_operator.observe.hindrance import hindrance, started
from claas_operator.plan.naming import OWNER_GENERATION_ANNOTATION, TRAINER_CONTAINER
from claas_operator.plan.world import ObjectReference, TrainerJob, TrainerStart, TrainerState

EVENTS_AFTER_SECONDS = 5
"""Age of a batch Job, in seconds, from which Events are read to see why its trainer does not run."""


def describe_attempt(
    name: str, batch_job: BatchJob | None, pods: Sequence[Pod], events: Sequence[Event] = ()
) -> TrainerJob:
    """State of an attempt, from its batch Job and its pods. `events`: those of the pod, or else of the batch Job;
    read only if `needs_events`."""
    alive = bool(alive_trainers(pods))
    if batch_job is None or batch_job.metadata.deletion_timestamp is not None:
        return TrainerJob(name=name, state=TrainerState.ABSENT, alive=alive)
    # An earlier batch Job of this name may have left a pod behind, which must not count.
    owner = batch_job.metadata.uid
    pods = [pod for pod in pods if any(reference.uid == owner for reference in pod.metadata.owner_references)]
    pod = max(pods, key=lambda pod: pod.metadata.creation_timestamp or datetime.min.replace(tzinfo=UTC), default=None)
    if pod is None:
        ended = batch_job.ended_because
        state = TrainerState.LOST if ended else TrainerState.RUNNING
        in_the_way = "" if ended else hindrance(batch_job, None, events)
        return TrainerJob(
            name=name,
            state=state,
            alive=alive,
            uid=owner,
            message=ended or in_the_way or "The trainer's pod is being made",
            retired=batch_job.retired,
            start=None if ended else _start(batch_job, in_the_way),
        )
    its_pod = ObjectReference(pod.metadata.name, pod.metadata.uid)
    trainer = pod.state_of(TRAINER_CONTAINER).terminated
    if trainer is not None:
        result = _result(trainer.message)
        # A trainer that was killed after reporting its version has done its work.
        published = result is not None and result.succeeded and result.version is not None
        return TrainerJob(
            name=name,
            state=TrainerState.FAILED if trainer.exit_code and not published else TrainerState.SUCCEEDED,
            alive=alive,
            uid=owner,
            pod=its_pod,
            result=result,
            exit_code=trainer.exit_code,
            message=_said(trainer.reason, pod.status.reason, pod.status.message),
            finished_at=trainer.finished_at,
            held_open=_held_open(pod),
            retired=batch_job.retired,
        )
    if pod.ended:
        return TrainerJob(
            name=name,
            state=TrainerState.SUCCEEDED if pod.status.phase == "Succeeded" else TrainerState.FAILED,
            alive=alive,
            uid=owner,
            pod=its_pod,
            message=_said(_other_failure(pod), pod.status.reason, pod.status.message),
            retired=batch_job.retired,
        )
    in_the_way = "" if started(pod) else hindrance(batch_job, pod, events)
    return TrainerJob(
        name=name,
        state=TrainerState.RUNNING,
        alive=True,
        uid=owner,
        pod=its_pod,
        message=in_the_way,
        start=None if started(pod) else _start(batch_job, in_the_way),
    )


def needs_events(attempt: TrainerJob, now: datetime) -> bool:
    """Whether a trainer has not run for some seconds, and only Events could show why."""
    start = attempt.start
    return start is not None and not start.hindered and now - start.since > timedelta(seconds=EVENTS_AFTER_SECONDS)


def _start(batch_job: BatchJob, in_the_way: str) -> TrainerStart:
    since = batch_job.metadata.creation_timestamp or datetime.now(UTC)
    generation = batch_job.metadata.annotations.get(OWNER_GENERATION_ANNOTATION, "")
    return TrainerStart(since, bool(in_the_way), int(generation) if generation.isdecimal() else None)


def alive_trainers(pods: Sequence[Pod]) -> tuple[ObjectReference, ...]:
    """The pods whose trainer may still run a process."""
    return tuple(
        ObjectReference(pod.metadata.name, pod.metadata.uid) for pod in pods if pod.may_run(TRAINER_CONTAINER)
    )


def held_open(pods: Sequence[Pod]) -> tuple[ObjectReference, ...]:
    """The batch Jobs whose trainer has ended, while other containers keep the pod from ending."""
    return tuple(
        ObjectReference(reference.name, reference.uid)
        for pod in pods
        if pod.metadata.deletion_timestamp is None and _held_open(pod)
        for reference in pod.metadata.owner_references
        if reference.kind == "Job"
    )


def _held_open(pod: Pod) -> bool:
    """Whether another container keeps running. Native sidecars are init containers, which the kubelet ends."""
    if pod.ended or pod.state_of(TRAINER_CONTAINER).terminated is None:
        return False
    return any(status.state.terminated is None for status in pod.status.container_statuses)


def _said(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _other_failure(pod: Pod) -> str:
    """The container that ended the pod before its trainer ran."""
    for status in (*pod.status.init_container_statuses, *pod.status.container_statuses):
        ended = status.state.terminated
        if ended is not None and ended.exit_code:
            return f"container {status.name} ended with exit code {ended.exit_code} before the trainer ran"
    return ""


def _result(message: str) -> TrainerResult | None:
    try:
        return TrainerResult.model_validate_json(message)
    except ValidationError:
        return None
