"""Statuses as Job controller and kubelet write them."""

from __future__ import annotations

from datetime import UTC, datetime

from pydantic import JsonValue

from claas_kube.objects.meta import Manifest


def now() -> str:
    """The time as Kubernetes writes it."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def condition(kind: str, *, holds: bool = True, reason: str = "", message: str = "") -> Manifest:
    """A condition of a pod or a Job."""
    status = "True" if holds else "False"
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": now()}


def running_pod(address: str, container: str, *, ready: bool = True) -> Manifest:
    """Status of a pod whose container runs; an empty address: it has none."""
    state: Manifest = {"running": {"startedAt": now()}}
    addresses: Manifest = {"podIP": address, "podIPs": [{"ip": address}]} if address else {}
    return {
        "phase": "Running",
        **addresses,
        "conditions": [condition("PodScheduled"), condition("Ready", holds=ready)],
        "containerStatuses": [_container(container, state, ready=ready)],
    }


def ended_pod(container: str, exit_code: int, message: str) -> Manifest:
    """Status of a pod whose container has ended."""
    reason = "Completed" if exit_code == 0 else "Error"
    terminated: Manifest = {"exitCode": exit_code, "message": message, "reason": reason, "finishedAt": now()}
    return {
        "phase": "Succeeded" if exit_code == 0 else "Failed",
        "conditions": [condition("PodScheduled"), condition("Ready", holds=False)],
        "containerStatuses": [_container(container, {"terminated": terminated}, ready=False)],
    }


def held_open_pod(address: str, container: str, exit_code: int, message: str, sidecar: str) -> Manifest:
    """Status of a pod whose container has ended, and whose sidecar goes on."""
    running, ended = running_pod(address, sidecar), ended_pod(container, exit_code, message)
    statuses = [*_containers(running), *_containers(ended)]
    return {**running, "conditions": ended["conditions"], "containerStatuses": statuses}


def _containers(status: Manifest) -> list[JsonValue]:
    found = status["containerStatuses"]
    assert isinstance(found, list)
    return found


def active_job(started: str) -> Manifest:
    """Status of a batch Job whose pod runs."""
    return {"startTime": started, "active": 1, "uncountedTerminatedPods": {}}


def ended_job(started: str, *, succeeded: bool) -> Manifest:
    """Status of a batch Job that is done, with the conditions that the API server demands."""
    if succeeded:
        return {
            "startTime": started,
            "completionTime": now(),
            "active": 0,
            "succeeded": 1,
            "conditions": [condition("SuccessCriteriaMet"), condition("Complete")],
        }
    message = "Job has reached the specified backoff limit"
    return {
        "startTime": started,
        "active": 0,
        "failed": 1,
        "conditions": [
            condition(kind, reason="BackoffLimitExceeded", message=message) for kind in ("FailureTarget", "Failed")
        ],
    }


def _container(name: str, state: JsonValue, *, ready: bool) -> Manifest:
    return {
        "name": name,
        "state": state,
        "ready": ready,
        "restartCount": 0,
        "image": "none",
        "imageID": "",
        "started": ready,
    }
