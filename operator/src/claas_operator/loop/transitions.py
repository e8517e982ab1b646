"""Log lines for changes of state: object, old and new state, and reason."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from claas_crds.v1alpha1.conditions import AdapterCondition, Condition, condition_of
from claas_crds.v1alpha1.distill_job import DistillJobStatus
from claas_crds.v1alpha1.lora_adapter import LoraAdapterStatus
from claas_operator.keys import Key
from claas_operator.plan.actions import Action, WriteLease
from claas_operator.plan.serving_lease import Grant, ServingLease

log = logging.getLogger(__name__)

LONGEST_WHY = 300


def log_transitions(key: Key, *transitions: str | None) -> None:
    """A line for each change that was written."""
    for transition in transitions:
        if transition is not None:
            log.info("%s %s/%s: %s", key.kind, key.namespace, key.name, transition)


def job_transition(before: DistillJobStatus, after: DistillJobStatus) -> str | None:
    """A DistillJob's change of phase or of its waiting reason; None if there is none."""
    if (before.phase, before.reason) == (after.phase, after.reason):
        return None
    return _line(before.phase or "new", after.phase or "new", after.reason, after.message)


def adapter_transition(before: LoraAdapterStatus, after: LoraAdapterStatus) -> str | None:
    """A LoraAdapter's change of `Ready` or of the version in service; None if there is none."""
    said, says = (condition_of(status.conditions, AdapterCondition.READY) for status in (before, after))
    if says is None or _state(said, before) == _state(says, after):
        return None
    return _line(_state(said, before), _state(says, after), says.reason, says.message)


def lease_transitions(before: ServingLease | None, actions: Iterable[Action]) -> list[str]:
    """A change of a serving Lease's grant."""
    old = before.grant if before is not None else None
    lines = []
    for action in actions:
        if isinstance(action, WriteLease) and _holding(action.lease.grant) != _holding(old):
            stopped = action.lease.grant.stopped_because if action.lease.grant is not None else None
            lines.append(_line(_holding(old), _holding(action.lease.grant), stopped, None))
    return lines


def _state(ready: Condition | None, status: LoraAdapterStatus) -> str:
    if ready is None:
        return "new"
    word = {"True": "ready", "False": "not ready"}.get(ready.status, "unknown")
    return f"{word} ({ready.reason}, version {status.served_version})"


def _holding(grant: Grant | None) -> str:
    if grant is None:
        return "free"
    ending = ", to be ended" if grant.stopped_because is not None else ""
    return f"held by {grant.names} for attempt {grant.first.attempt} ({grant.handover}){ending}"


def _line(before: str, after: str, reason: str | None, message: str | None) -> str:
    why = ": ".join(" ".join(part.split()) for part in (reason, message) if part)
    cut = why if len(why) <= LONGEST_WHY else f"{why[: LONGEST_WHY - 4]} ..."
    return f"{before} -> {after}" + (f": {cut}" if cut else "")
