"""Builds the conditions of a plan: keeps the times of transitions, and notes each transition as an Event."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from claas_crds.v1alpha1.conditions import Condition, ConditionStatus, condition_of
from claas_operator.plan.actions import Note


@dataclass
class ConditionDraft:
    """The conditions that a plan will write, based on those in status."""

    now: datetime
    generation: int
    conditions: list[Condition]
    notes: list[Note] = field(default_factory=list)

    def set(
        self,
        condition_type: str,
        holds: bool | None,
        reason: str,
        message: str,
        *,
        warning: bool = False,
        quiet: bool = False,
    ) -> None:
        """Set a condition's status (None: Unknown), reason and message. A change of status or reason is noted as an
        Event, unless `quiet` because another condition's Event covers it.
        """
        status = {True: ConditionStatus.TRUE, False: ConditionStatus.FALSE, None: ConditionStatus.UNKNOWN}[holds]
        before = condition_of(self.conditions, condition_type)
        changed = before is None or before.status is not status
        after = Condition(
            type=condition_type,
            status=status,
            reason=reason,
            message=message,
            last_transition_time=self.now if before is None or changed else before.last_transition_time,
            observed_generation=self.generation,
        )
        if before is None:
            self.conditions.append(after)
        else:
            self.conditions[self.conditions.index(before)] = after
        if not quiet and (before is None or changed or before.reason != reason):
            self.notes.append(Note(reason=reason, message=message, warning=warning))

    def remove(self, condition_type: str) -> None:
        """Drop a condition that no longer applies."""
        self.conditions = [condition for condition in self.conditions if condition.type != condition_type]
