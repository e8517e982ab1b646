"""Why a vLLM pod is not ready: its state in Kubernetes, and the last log line of a container that ended."""

from __future__ import annotations

import re
from collections.abc import Sequence

from claas_kube.objects.pods import Container, ContainerStatus, Pod, Terminated
from claas_kube.objects.workloads import Deployment

LONGEST_WORDS = 300
"""Longest quotation, in characters."""
_PODS_NAMED = 3
_STARTING = frozenset({"", "ContainerCreating", "PodInitializing"})
_OF_REQUESTS = re.compile(r"prompt|messages|Received request|Generated response", re.IGNORECASE)
"""Marks of lines in which vLLM logs requests and answers (--enable-log-requests, --enable-log-outputs)."""


def unready_because(pod: Pod, container: Container | None) -> str:
    """State of a pod that is not ready; `container` is the one that runs vLLM, by the Deployment."""
    if pod.metadata.deletion_timestamp is not None:
        return "is being deleted"
    for condition in pod.status.conditions:
        if condition.type == "PodScheduled" and condition.status == "False":
            return f"is not scheduled: {_cut(f'{condition.reason}: {condition.message}')}"
    for status in pod.status.init_container_statuses:
        held = _held_up(status)
        if held:
            return f"waits for its init container {status.name}: {held}"
    named = container.name if container is not None else None
    statuses = [each for each in pod.status.container_statuses if named is None or each.name == named]
    for status in statuses:
        held = _held_up(status)
        if held:
            return f"has its container {status.name} down: {held}"
    if any(status.state.running is not None for status in statuses):
        return _runs(next(status for status in statuses if status.state.running is not None), container)
    said = ": ".join(part for part in (pod.status.reason, pod.status.message) if part)
    return f"is {pod.status.phase}" + (f": {_cut(said)}" if said else "")


def no_pod_because(deployment: str, found: Deployment | None, troubles: Sequence[tuple[str, str]]) -> str:
    """Why no pod of a Deployment is ready; `troubles` are its pods with their states."""
    said = f"No pod of Deployment {deployment} is ready"
    if troubles:
        told = "; ".join(f"{pod} {trouble}" if trouble else pod for pod, trouble in troubles[:_PODS_NAMED])
        more = len(troubles) - _PODS_NAMED
        return f"{said}: {told}" + (f"; and {more} more" if more > 0 else "")
    if found is not None and found.spec.replicas == 0:
        return f"{said}: it is scaled to 0"
    for condition in found.status.conditions if found is not None else ():
        if condition.type == "ReplicaFailure" and condition.status == "True":
            return f"{said}: its pods can't be made: {_cut(f'{condition.reason}: {condition.message}')}"
    return f"{said}: it has none yet"


def _held_up(status: ContainerStatus) -> str:
    """What keeps a container from running; empty while it starts or runs, or if it has succeeded."""
    waiting, ended = status.state.waiting, status.state.terminated
    if ended is not None:
        return "" if ended.exit_code == 0 else _last_words(ended)
    if waiting is None or (waiting.reason in _STARTING and status.last_state.terminated is None):
        return ""
    before = status.last_state.terminated
    if before is None:
        return _cut(": ".join(part for part in (waiting.reason, waiting.message) if part))
    return f"{waiting.reason}, after {status.restart_count} restarts; {_last_words(before)}"


def _runs(status: ContainerStatus, container: Container | None) -> str:
    said = f"runs its container {status.name}, which is not ready"
    before = status.last_state.terminated
    if before is not None:
        said += f" after {status.restart_count} restarts; before that {_last_words(before)}"
    if container is not None and container.liveness_probe is None:
        said += "; it has no livenessProbe, so nothing restarts it if its engine is dead (docs/vllm.md)"
    return said


def _last_words(ended: Terminated) -> str:
    """How a container ended, and the last line of its termination message without a user's text; with
    `FallbackToLogsOnError` the message is the end of the log."""
    reason = f" ({ended.reason})" if ended.reason else ""
    lines = [line.strip() for line in ended.message.splitlines() if line.strip() and not _OF_REQUESTS.search(line)]
    return f"it ended with exit code {ended.exit_code}{reason}" + (f": {_cut(lines[-1])}" if lines else "")


def _cut(words: str) -> str:
    return words if len(words) <= LONGEST_WORDS else f"{words[:LONGEST_WORDS]}..."
