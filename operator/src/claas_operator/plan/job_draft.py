"""A DistillJob's plan while it is being made: conditions, changes of status and actions so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from claas_crds.v1alpha1.conditions import JobCondition, is_true, telling_condition
from claas_crds.v1alpha1.distill_job import DistillJobStatus, JobPhase
from claas_operator.plan.actions import (
    Action,
    CreateAttempt,
    DeleteAttempt,
    Note,
    RetireAttempt,
)
from claas_operator.plan.conditions import ConditionDraft
from claas_operator.plan.queueing import finished
from claas_operator.plan.timing import settled
from claas_operator.plan.world import JobWorld, TrainerJob, TrainerState

STOP_GRACE_SECONDS = 20
"""How long a trainer that is told to end has for waking serving by itself."""
TELL_SECONDS = 10
"""How often a status is written that says only how far a trainer or a load is: what is over sooner is not told."""
KEPT_SECONDS = 3600
"""How long a trainer's batch Job and log stay after it was accounted for."""


def retire(attempt: TrainerJob, now: datetime) -> RetireAttempt:
    """Let an attempt go that is accounted for. Kubernetes counts from its end, which may be long past."""
    ended_ago = (now - (attempt.finished_at or now)).total_seconds()
    return RetireAttempt(attempt.name, KEPT_SECONDS + max(0, int(ended_ago)))


def end(attempt: TrainerJob, grace_seconds: int, why: str) -> DeleteAttempt:
    """End an attempt, or take away what is left of it."""
    return DeleteAttempt(attempt.name, attempt.uid, attempt.pod, grace_seconds, why)


@dataclass(frozen=True)
class JobPlan:
    """Actions, the status to be, Events, and when to look again (None: on an event)."""

    actions: tuple[Action, ...]
    status: DistillJobStatus
    notes: tuple[Note, ...]
    requeue_seconds: float | None

    @property
    def creations(self) -> tuple[CreateAttempt, ...]:
        """What is made before status tells of it: a second look finds it by its name."""
        return tuple(action for action in self.actions if isinstance(action, CreateAttempt))

    @property
    def remaining(self) -> tuple[Action, ...]:
        """What is done after status was written: it may take away what status was decided on."""
        return tuple(action for action in self.actions if not isinstance(action, CreateAttempt))


@dataclass
class JobDraft:
    """What the plan will be; lives for one call of `plan_job`."""

    world: JobWorld
    conditions: ConditionDraft
    changes: dict[str, object] = field(default_factory=dict)
    actions: list[Action] = field(default_factory=list)
    caveat: str = ""
    """What is not known about the end that is to be told."""

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
        """The plan with status as it is, and nothing to tell."""
        return JobPlan(tuple(self.actions), self.world.job.status, (), requeue_seconds)

    @property
    def told_just_now(self) -> bool:
        """Whether the status of the job was written so lately that progress alone is not told."""
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
        """End pods whose trainer has ended and is accounted for, which other containers keep from ending."""
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
