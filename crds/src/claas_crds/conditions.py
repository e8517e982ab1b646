"""Conditions of both resources and every reason they can have.

Shape and meaning follow `metav1.Condition`; `Ready`, `Reconciling` and `Stalled` follow kstatus, so that
`kubectl wait`, Argo CD and Flux read them without being taught.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum

from pydantic import Field

from claas_crds.base import ResourceModel


class ConditionStatus(StrEnum):
    """Whether a condition holds."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(ResourceModel):
    """One aspect of a resource's state."""

    type: str = Field(max_length=316)
    """What is said, in CamelCase."""
    status: ConditionStatus
    """Whether it holds: True, False or Unknown."""
    reason: str = Field(max_length=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")
    """Why, as one word for programs."""
    message: str = Field(max_length=32768)
    """Why, as a sentence for people."""
    last_transition_time: datetime
    """When `status` last changed."""
    observed_generation: int | None = Field(default=None, ge=0)
    """The generation of the spec this was said about."""


class AdapterCondition(StrEnum):
    """Condition types of a LoraAdapter; their reasons are in `ADAPTER_REASONS`."""

    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    SERVED = "Served"
    COMPANION = "CompanionReady"


class JobCondition(StrEnum):
    """Condition types of a DistillJob; their reasons are in `JOB_REASONS`."""

    COMPLETE = "Complete"
    FAILED = "Failed"
    SUSPENDED = "Suspended"
    ADMITTED = "Admitted"
    TRAINED = "Trained"
    SERVED = "Served"


class AdapterReason(StrEnum):
    """Reasons on LoraAdapter conditions."""

    SERVING = "Serving"
    PENDING = "Pending"
    INITIALISING = "Initialising"
    INITIALISATION_FAILED = "InitialisationFailed"
    DEPLOYMENT_NOT_FOUND = "DeploymentNotFound"
    STORAGE_NOT_FOUND = "StorageNotFound"
    STORAGE_NOT_MOUNTED = "StorageNotMounted"
    SECRET_NOT_FOUND = "SecretNotFound"
    NO_READY_PODS = "NoReadyPods"
    LOADING = "Loading"
    LOAD_FAILED = "LoadFailed"
    VLLM_UNREACHABLE = "VllmUnreachable"
    ASLEEP = "Asleep"
    TRAINING = "Training"
    UP_TO_DATE = "UpToDate"
    COMPANION_MISSING = "CompanionMissing"
    COMPANION_FOUND = "CompanionFound"
    CONTROL_REFUSED = "ControlRefused"
    INVALID_SPEC = "InvalidSpec"
    DELETING = "Deleting"


class JobReason(StrEnum):
    """Reasons on DistillJob conditions that the operator gives by itself; a trainer's `FailureReason` is the other
    source."""

    WAITING = "Waiting"
    SUSPENDED = "Suspended"
    RESUMED = "Resumed"
    QUEUED = "Queued"
    ADMITTED = "Admitted"
    RUNNING = "Running"
    RETRYING = "Retrying"
    STEP_TAKEN = "StepTaken"
    ALREADY_PUBLISHED = "AlreadyPublished"
    IN_SERVICE = "InService"
    PUTTING_INTO_SERVICE = "PuttingIntoService"
    COMPLETED = "Completed"
    ADAPTER_NOT_FOUND = "AdapterNotFound"
    ADAPTER_NOT_READY = "AdapterNotReady"
    SAMPLES_NOT_FOUND = "SamplesNotFound"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    BACKOFF_LIMIT_EXCEEDED = "BackoffLimitExceeded"
    TRAINER_LOST = "TrainerLost"
    MAX_PAUSE_EXCEEDED = "MaxPauseExceeded"
    ADAPTER_DELETED = "AdapterDeleted"


def condition_of(conditions: Iterable[Condition], condition_type: str) -> Condition | None:
    """The condition of that type, or None."""
    return next((condition for condition in conditions if condition.type == condition_type), None)


def is_true(conditions: Iterable[Condition], condition_type: str) -> bool:
    """Whether the condition is there and True."""
    condition = condition_of(conditions, condition_type)
    return condition is not None and condition.status is ConditionStatus.TRUE
