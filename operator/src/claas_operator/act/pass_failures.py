"""Status of an object whose pass failed: why, and that it is retried.

Works on plain data, so that objects which this release can't read get a status too.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from pydantic import JsonValue, ValidationError

from claas_crds.v1alpha1.conditions import AdapterCondition, AdapterReason, ConditionStatus, JobCondition, JobReason
from claas_crds.v1alpha1.distill_job import DistillJobStatus
from claas_crds.v1alpha1.step import JobPhase
from claas_kube.errors import ApiError, Unavailable
from claas_kube.objects.meta import Manifest
from claas_operator.errors import OperatorError
from claas_operator.plan.conditions import ConditionDraft

FIRST_RETRY_SECONDS = 5.0
LONGEST_RETRY_SECONDS = 300.0


@dataclass(frozen=True)
class Trouble:
    """Why a pass failed."""

    refused: bool
    """Whether the API server refused a request, so that somebody has to act."""
    message: str


def trouble_of(error: Exception) -> Trouble:
    """Describes an exception: the API server's message, or the unreadable field. Of an unexpected exception only type
    and place, because its message may quote a user's text."""
    if isinstance(error, Unavailable):
        return Trouble(False, f"The API server could not answer: {error}; tried again")
    if isinstance(error, ApiError):
        return Trouble(True, f"The API server refused: {error}; tried again")
    if isinstance(error, ApiError | OperatorError):
        return Trouble(False, f"{error}; tried again")
    if isinstance(error, ValidationError):
        first = error.errors(include_input=False, include_context=False, include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        return Trouble(
            False,
            f"{field}: this release of the operator can't read it: {first['msg']}; was it written by a newer one?",
        )
    places = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(places[-1].filename).name}:{places[-1].lineno}" if places else ""
    return Trouble(False, f"A fault of the operator: {type(error).__name__}{place}; tried again, please report it")


def adapter_status(found: Manifest, trouble: Trouble, now: datetime) -> Manifest:
    """Patch for a LoraAdapter's status: Ready is False or Unknown."""
    reason = AdapterReason.REQUEST_REFUSED if trouble.refused else AdapterReason.RECONCILE_FAILED
    said = _Said(found, now)
    said.put(AdapterCondition.READY, False if trouble.refused else None, reason, trouble.message)
    for kind, holds in (
        (AdapterCondition.RECONCILING, not trouble.refused),
        (AdapterCondition.STALLED, trouble.refused),
    ):
        if holds:
            said.put(kind, True, reason, trouble.message)
        else:
            said.put(kind, False, AdapterReason.UP_TO_DATE, "Another condition tells what is so")
    return said.status()


def job_status(found: Manifest, trouble: Trouble, now: datetime) -> Manifest:
    """Patch for a DistillJob's status: the next stage is False. Empty for a finished job."""
    reason = JobReason.REQUEST_REFUSED if trouble.refused else JobReason.RECONCILE_FAILED
    said = _Said(found, now)
    if said.holds(JobCondition.COMPLETE) or said.holds(JobCondition.FAILED):
        return {}
    kind = JobCondition.ADMITTED
    if said.holds(JobCondition.TRAINED):
        kind = JobCondition.SERVED
    elif said.holds(JobCondition.ADMITTED):
        kind = JobCondition.TRAINED
    said.put(kind, False, reason, trouble.message)
    status: Manifest = {**said.status(), "reason": str(reason), "message": trouble.message}
    # A job that waits for its turn holds up no other job.
    return {**status, "phase": JobPhase.PENDING.value} if kind is JobCondition.ADMITTED else status


class _Said:
    """The conditions of an object that may be unreadable."""

    def __init__(self, found: Manifest, now: datetime) -> None:
        metadata, status = found.get("metadata"), found.get("status")
        self._generation = metadata.get("generation") if isinstance(metadata, dict) else None
        self.before = status if isinstance(status, dict) else {}
        self._now = now.isoformat().replace("+00:00", "Z")
        listed = self.before.get("conditions")
        self._conditions = [each for each in (listed if isinstance(listed, list) else []) if isinstance(each, dict)]

    def holds(self, kind: str) -> bool:
        return any(each.get("type") == kind and each.get("status") == "True" for each in self._conditions)

    def put(self, kind: str, holds: bool | None, reason: str, message: str) -> None:
        status = {True: "True", False: "False", None: ConditionStatus.UNKNOWN.value}[holds]
        old = next((each for each in self._conditions if each.get("type") == kind), None)
        moved = old is None or old.get("status") != status
        after: dict[str, JsonValue] = {
            "type": str(kind),
            "status": status,
            "reason": str(reason),
            "message": message,
            "lastTransitionTime": self._now if moved or old is None else old.get("lastTransitionTime"),
            "observedGeneration": self._generation,
        }
        self._conditions = [each for each in self._conditions if each.get("type") != kind] + [after]

    def status(self) -> Manifest:
        conditions: list[JsonValue] = list(_in_order(self.before, self._conditions))
        return {"conditions": conditions, "observedGeneration": self._generation}


def _in_order(before: Manifest, conditions: list[Manifest]) -> Iterable[Manifest]:
    """The conditions in their previous order, new ones last, so that equal conditions make no change."""
    listed = before.get("conditions")
    order = [each.get("type") for each in (listed if isinstance(listed, list) else []) if isinstance(each, dict)]
    return sorted(conditions, key=lambda each: order.index(each["type"]) if each["type"] in order else len(order))


def refused_step(status: DistillJobStatus, generation: int, error: ApiError, now: datetime) -> DistillJobStatus:
    """Status of a job whose trainer or Lease the API server refuses: other jobs go first during its back-off. Each
    wait is half as long as the job has tried so far.
    """
    draft = ConditionDraft(now, generation, list(status.conditions))
    draft.set(JobCondition.ADMITTED, False, JobReason.REQUEST_REFUSED, trouble_of(error).message)
    tried = (now - (status.start_time or now)).total_seconds()
    delay = min(LONGEST_RETRY_SECONDS, max(FIRST_RETRY_SECONDS, tried / 2))
    return status.model_copy(
        update={
            "conditions": draft.conditions,
            "reason": JobReason.REQUEST_REFUSED.value,
            "message": trouble_of(error).message,
            "phase": JobPhase.PENDING,
            "retry_time": now + timedelta(seconds=delay),
        }
    )
