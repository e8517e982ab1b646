"""A DistillJob's plan while it is being made: conditions, changes of status and actions so far."""

from __future__ import annotations

from dataclasses import dataclass, field

from claas_crds.conditions import JobCondition, is_true
from claas_crds.distill_job import DistillJobStatus, JobPhase
from claas_operator.actions import Action, DeleteAttempt, Note
from claas_operator.conditions import ConditionDraft
from claas_operator.world import AttemptState, JobWorld

STOP_GRACE_SECONDS = 20
"""How long a trainer that is told to end has for waking serving by itself."""


@dataclass(frozen=True)
class JobPlan:
    """Actions, the status to be, Events, and when to look again (None: on an event)."""

    actions: tuple[Action, ...]
    status: DistillJobStatus
    notes: tuple[Note, ...]
    requeue_seconds: float | None


@dataclass
class JobDraft:
    """What the plan will be; lives for one call of `plan_job`."""

    world: JobWorld
    conditions: ConditionDraft
    changes: dict[str, object] = field(default_factory=dict)
    actions: list[Action] = field(default_factory=list)

    def plan(self, phase: JobPhase, requeue_seconds: float | None) -> JobPlan:
        """The plan, with everything gathered so far."""
        status = self.world.job.status.model_copy(
            update={
                **self.changes,
                "phase": phase,
                "conditions": self.conditions.conditions,
                "observed_generation": self.world.job.metadata.generation,
            }
        )
        return JobPlan(tuple(self.actions), status, tuple(self.conditions.notes), requeue_seconds)

    def fail(self, reason: str, message: str) -> JobPlan:
        """The job has failed for good."""
        if not is_true(self.conditions.conditions, JobCondition.TRAINED):
            self.conditions.set(JobCondition.TRAINED, False, reason, message, quiet=True)
        self.conditions.set(JobCondition.FAILED, True, reason, message, warning=True)
        self.changes["completion_time"] = self.world.now
        return self.plan(JobPhase.FAILED, 0.0)

    def stop_attempt(self, why: str) -> None:
        """End the running attempt, if there is one."""
        attempt = self.world.attempt
        if attempt.state is not AttemptState.ABSENT or self.world.attempts_alive:
            self.actions.append(DeleteAttempt(attempt.name, attempt.pod, STOP_GRACE_SECONDS, why))
