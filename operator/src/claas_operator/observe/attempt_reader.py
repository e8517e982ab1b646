"""Observes one trainer: its batch Job, its pods and, if they do not show why it does not start, their Events."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from claas_kube.errors import Forbidden
from claas_operator.clients.reader import Reader
from claas_operator.observe.attempts import describe_attempt, needs_events
from claas_operator.plan.world import TrainerJob, TrainerState


async def observe_attempt(read: Reader, namespace: str, name: str | None, now: datetime) -> TrainerJob:
    """State of the attempt with that name; None: there was none."""
    if name is None:
        return TrainerJob(name="", state=TrainerState.ABSENT, alive=False)
    batch_job = await read.batch_job(namespace, name)
    pods = await read.batch_job_pods(namespace, name)
    attempt = describe_attempt(name, batch_job, pods)
    about = attempt.pod.uid if attempt.pod is not None else attempt.uid
    if about is None or not needs_events(attempt, now):
        return attempt
    try:
        events = await read.events(namespace, about)
    except Forbidden:
        # Roles of an earlier release lack this permission, and a trainer that starts needs no Events.
        return replace(attempt, message="The trainer does not run yet; Events about it can't be listed (RBAC)")
    return describe_attempt(name, batch_job, pods, events)
