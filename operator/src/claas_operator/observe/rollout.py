"""Whether a Deployment is settled enough for a step: no pod is about to be replaced, and none holds a GPU without
serving."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from claas_kube.objects.pods import Pod
from claas_kube.objects.workloads import Deployment

STARTING_SECONDS = 600
"""Seconds for which a pod that is not ready counts as starting. After that it counts as broken and no longer holds up
steps."""


def unsettled(deployment: Deployment, pods: Sequence[Pod], now: datetime) -> str | None:
    """Why a step should not start now, as a sentence; None if the Deployment is settled. `pods` are all that its
    selector matches, including terminating ones.
    """
    name, status = deployment.metadata.name, deployment.status
    leaving = next((pod for pod in pods if pod.metadata.deletion_timestamp is not None and not pod.ended), None)
    if leaving is not None:
        return f"pod {leaving.metadata.name} of Deployment {name} is on its way out and may still hold its GPU"
    # The status of a Deployment is empty until its controller has processed it.
    if status.observed_generation is not None:
        if status.observed_generation < deployment.metadata.generation:
            return f"Deployment {name} was changed just now"
        if status.updated_replicas < min(deployment.spec.replicas, status.replicas or deployment.spec.replicas):
            wanted = deployment.spec.replicas
            return f"Deployment {name} is being rolled out: {status.updated_replicas} of {wanted} pods are new"
        if status.replicas > status.updated_replicas:
            old = status.replicas - status.updated_replicas
            return f"Deployment {name} is being rolled out: {old} old pods are still there"
    starting = next((pod for pod in pods if _starts(pod, now)), None)
    if starting is not None:
        return f"pod {starting.metadata.name} of Deployment {name} is starting and may take its GPU's memory"
    return None


def _starts(pod: Pod, now: datetime) -> bool:
    created = pod.metadata.creation_timestamp
    if pod.ready or pod.ended or created is None:
        return False
    return now - created < timedelta(seconds=STARTING_SECONDS)
