"""Builder of a DistillJob's plan: conditions, changes of status and actions so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from claas_crds.v1alpha1.conditions import JobCondition, is_true, telling_condition
from claas_crds.v1alpha1.distill_job import DistillJobStatus
from claas_crds.v1alpha1.step import JobPhase
from claas_operator.plan.actions import Action, CreateAttempt, DeleteAttempt, Note, RetireAttempt
from claas_operator.plan.conditions import ConditionDraft
from claas_operator.plan.queueing import finished
from claas_operator.plan.timing import settled
from claas_operator.plan.world import JobWorld, TrainerJob, TrainerState

STOP_GRACE_SECONDS = 20
"""Grace period in seconds in which an ending trainer can wake serving by itself."""
TELL_SECONDS = 15
"""Shortest interval in seconds between status writes that only report progress."""
TELL_ADAPTER_SECONDS = 30
"""Seconds after which the adapter's status tells of a step too."""
KEPT_SECONDS = 3600
"""Seconds that a trainer's batch Job and log stay after it was accounted for."""


def retire(attempt: TrainerJob, now: datetime) -> RetireAttempt:
    """Retire an attempt that is accounted for. Kubernetes counts its time to live from its end, which may be long
    past."""
    ended_ago = (now - (attempt.finished_at or now)).total_seconds()
    return RetireAttempt(attempt.name, KEPT_SECONDS + max(0, int(ended_ago)))


def end(attempt: TrainerJob, grace_seconds: int, why: str) -> DeleteAttempt:
    """End an attempt, or delete its remnants."""
    return DeleteAttempt(attempt.name, attempt.uid, attempt.pod, grace_seconds, why)


@dataclass(frozen=True)
class JobPlan:
    """Actions, the new status, Events, and the seconds until the next pass (None: on an event)."""

    actions: tuple[Action, ...]
    status: DistillJobStatus
    notes: tuple[Note, ...]
    requeue_seconds: float | None

    @property
    def creations(self) -> tuple[CreateAttempt, ...]:
        """Objects created before the status mentions them; the next pass finds them by name."""
        return tuple(action for action in self.actions if isinstance(action, CreateAttempt))

    @property
    def remaining(self) -> tuple[Action, ...]:
        """Actions after the status was written, because they may delete what the status was decided on."""
        return tuple(action for action in self.actions if not isinstance(action, CreateAttempt))


@dataclass
class JobDraft:
    """The plan under construction, during one call of `plan_job`."""

    world: JobWorld
    conditions: ConditionDraft
    changes: dict[str, object] = field(default_factory=dict)
    actions: list[Action] = field(default_factory=list)
    caveat: str = ""
    """What remains unknown at the job's end."""

    def plan(self, phase: JobPhase, requeue_seconds: float | None) -> JobPlan:
        """The plan, with everything gathered so far."""
        told = telling_condition(self.conditions.conditions)
        status = self.world.job.status.model_copy(
            update={
                **self.changes,
                "reason": told.reason if told else None,
                "message": told.message if told else None,
                "phase": phase,
                "conditions": self.conditions.conditions,
                "observed_generation": self.world.job.metadata.generation,
            }
        )
        if "completion_time" in self.changes:
            status = status.model_copy(update={"timings": settled(status)})
        return JobPlan(tuple(self.actions), status, tuple(self.conditions.notes), requeue_seconds)

    def unchanged(self, requeue_seconds: float) -> JobPlan:
        """The plan with unchanged status and without Events."""
        return JobPlan(tuple(self.actions), self.world.job.status, (), requeue_seconds)

    @property
    def told_just_now(self) -> bool:
        """Whether the job's status was written so recently that mere progress is not written."""
        told = self.world.told
        return told is not None and self.world.now - told < timedelta(seconds=TELL_SECONDS)

    def fail(self, reason: str, message: str) -> JobPlan:
        """The job has failed for good."""
        message += self.caveat
        if not is_true(self.conditions.conditions, JobCondition.TRAINED):
            self.conditions.set(JobCondition.TRAINED, False, reason, message, quiet=True)
        self.conditions.set(JobCondition.FAILED, True, reason, message, warning=True)
        self.changes["completion_time"] = self.world.now
        return self.plan(JobPhase.FAILED, 0.0)

    def retire_attempt(self) -> None:
        """The attempt is accounted for in this plan's status."""
        self.actions.append(retire(self.world.attempt, self.world.now))

    def end_held_open(self) -> None:
        """End pods that other containers keep running after their trainer has ended and is accounted for."""
        world = self.world
        status = world.job.status
        done = status.produced_version is not None or finished(status.conditions)
        for batch_job in world.held_open:
            if done or batch_job.name != world.attempt.name:
                why = "its trainer has ended, and another container keeps its pod"
                self.actions.append(DeleteAttempt(batch_job.name, batch_job.uid, None, STOP_GRACE_SECONDS, why))

    def stop_attempt(self, why: str) -> None:
        """End the running attempt, if there is one."""
        attempt = self.world.attempt
        if attempt.state is not TrainerState.ABSENT or self.world.attempts_alive:
            self.actions.append(end(attempt, STOP_GRACE_SECONDS, why))
