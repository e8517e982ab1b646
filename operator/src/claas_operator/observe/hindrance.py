"""Why a trainer does not start, in Kubernetes' own words: from the batch Job, its pod, and their Events.

Quota and admission refuse a pod before it exists, which only Events of the batch Job show; a volume that can't be
attached or a missing ConfigMap shows only in Events of the pod.
"""

from __future__ import annotations

from collections.abc import Sequence

from claas_kube.objects.pods import Pod
from claas_kube.objects.workloads import BatchJob, Event
from claas_operator.plan.naming import TRAINER_CONTAINER

LONGEST_WORDS = 1000
"""Longest quotation, in characters; some messages name every node of the cluster."""
_STARTING = frozenset({"", "ContainerCreating", "PodInitializing"})
_GOES_ON = frozenset({"SuccessfulCreate", "SuccessfulAttachVolume", "Pulling", "Pulled", "Created", "Started"})
"""Events that make earlier ones obsolete."""


def started(pod: Pod) -> bool:
    """Whether the trainer's container runs, or has run."""
    state = pod.state_of(TRAINER_CONTAINER)
    return state.running is not None or state.terminated is not None or pod.ended


def hindrance(batch_job: BatchJob, pod: Pod | None, events: Sequence[Event] = ()) -> str:
    """What keeps the trainer from starting; empty if nothing is known. `events`: those of the pod, or of the batch
    Job while there is no pod."""
    said = _of_job(batch_job) if pod is None else _of_pod(pod)
    return (said or _of_events(pod, events))[:LONGEST_WORDS]


def _of_job(batch_job: BatchJob) -> str:
    if not batch_job.spec.suspend:
        return ""
    suspended = next((each for each in batch_job.status.conditions if each.type == "Suspended"), None)
    said = f" ({suspended.message})" if suspended is not None and suspended.message else ""
    return f"Suspended: batch Job {batch_job.metadata.name} was suspended, and not by the operator{said}"


def _of_pod(pod: Pod) -> str:
    for condition in pod.status.conditions:
        if condition.type == "PodScheduled" and condition.status == "False":
            return f"{condition.reason}: {condition.message}"
    for status in (*pod.status.init_container_statuses, *pod.status.container_statuses):
        waiting = status.state.waiting
        if waiting is not None and waiting.reason not in _STARTING:
            return f"{waiting.reason}: {waiting.message}"
    return ""


def _of_events(pod: Pod | None, events: Sequence[Event]) -> str:
    telling = [
        event
        for event in events
        if event.reason in _GOES_ON
        # The conditions of a pod show whether it still waits for a node.
        or (event.type == "Warning" and not (pod is not None and event.reason == "FailedScheduling"))
    ]
    newest = max(telling, key=lambda event: (event.last_seen, event.type == "Warning"), default=None)
    if newest is None or newest.type != "Warning":
        return ""
    return f"{newest.reason}: {newest.message}"
