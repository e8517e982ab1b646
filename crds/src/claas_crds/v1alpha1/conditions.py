"""Conditions of both resources and their possible reasons.

Shape and meaning follow `metav1.Condition`; `Ready`, `Reconciling` and `Stalled` follow kstatus, so that
`kubectl wait`, Argo CD and Flux understand them without configuration.
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
    """Name of the aspect, in CamelCase."""
    status: ConditionStatus
    """Whether it holds: True, False or Unknown."""
    reason: str = Field(max_length=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")
    """Why, as one word for programs."""
    message: str = Field(max_length=32768)
    """Why, as a sentence for people."""
    last_transition_time: datetime
    """When `status` last changed."""
    observed_generation: int | None = Field(default=None, ge=0)
    """Generation of the spec that the condition refers to."""


class AdapterCondition(StrEnum):
    """Condition types of a LoraAdapter; `condition_docs` has the reasons of each."""

    READY = "Ready"
    """Every ready vLLM pod serves the version that should be in service."""
    RECONCILING = "Reconciling"
    """The operator is working on the adapter."""
    STALLED = "Stalled"
    """The adapter will not become ready until somebody changes something."""
    SERVED = "Served"
    """At least one vLLM pod answers under the served name."""
    COMPANION = "CompanionReady"
    """The companion runs in the vLLM pods."""


class JobCondition(StrEnum):
    """Condition types of a DistillJob; `condition_docs` has the reasons of each."""

    COMPLETE = "Complete"
    """The step was taken, published and is in service."""
    FAILED = "Failed"
    """The job has failed for good."""
    SUSPENDED = "Suspended"
    """The job does not run because `spec.suspend` says so."""
    ADMITTED = "Admitted"
    """The job holds the Lease of its vLLM Deployment, or of its adapter where steps are computed elsewhere."""
    TRAINED = "Trained"
    """The step was taken and its version is on the volume."""
    SERVED = "Served"
    """The job's version answers under the served name."""


class AdapterReason(StrEnum):
    """Reasons on LoraAdapter conditions."""

    SERVING = "Serving"
    """Every ready vLLM pod serves the version."""
    PENDING = "Pending"
    """The operator has not tried anything yet."""
    INITIALISING = "Initialising"
    """The initial version is being made."""
    TRAINER_NOT_STARTED = "TrainerNotStarted"
    """The pod that makes the initial version can't start."""
    INITIALISATION_FAILED = "InitialisationFailed"
    """The initial version could not be made."""
    ENGINE_REFUSED = "EngineRefused"
    """The adapter's engine can't follow the spec; the message names each setting."""
    DEPLOYMENT_NOT_FOUND = "DeploymentNotFound"
    """The Deployment does not exist."""
    STORAGE_NOT_FOUND = "StorageNotFound"
    """A claim does not exist."""
    STORAGE_NOT_MOUNTED = "StorageNotMounted"
    """The vLLM container does not mount the adapter's claim."""
    CONTAINER_NOT_FOUND = "ContainerNotFound"
    """The Deployment has no container with the name in `spec.serving.container`."""
    SERVER_MISCONFIGURED = "ServerMisconfigured"
    """vLLM's flags do not allow it to serve the adapter; the message names the flag and the value needed."""
    SECRET_NOT_FOUND = "SecretNotFound"
    """A Secret, or the key in it, does not exist."""
    NO_READY_PODS = "NoReadyPods"
    """The Deployment has no ready pod."""
    LOADING = "Loading"
    """A version is being loaded."""
    LOAD_FAILED = "LoadFailed"
    """vLLM refused to load the version, or it failed its probe."""
    VLLM_UNREACHABLE = "VllmUnreachable"
    """A ready pod does not answer."""
    ASLEEP = "Asleep"
    """A pod sleeps and no step is under way."""
    TRAINING = "Training"
    """Serving is paused for a step."""
    UP_TO_DATE = "UpToDate"
    """The state matches the spec."""
    COMPANION_MISSING = "CompanionMissing"
    """A ready pod answers without the companion."""
    COMPANION_FOUND = "CompanionFound"
    """Every ready pod has the companion."""
    SERVED_NAME_TAKEN = "ServedNameTaken"
    """An older adapter is served under the same name by the same Deployment."""
    ADAPTER_NOT_APPLIED = "AdapterNotApplied"
    """A pod answers with the base model in the version's place."""
    APP_NOT_DEPLOYED = "AppNotDeployed"
    """There is no such app, server or Volume on Modal."""
    CREDENTIALS_REFUSED = "CredentialsRefused"
    """Modal refused the workspace's token or the proxy token."""
    BILLING_REQUIRED = "BillingRequired"
    """Modal wants to be paid first."""
    SERVICE_UNREACHABLE = "ServiceUnreachable"
    """Modal's API does not answer, or wants fewer requests."""
    SECRET_INVALID = "SecretInvalid"
    """The content of a Secret can't be sent as a token."""
    CONTROL_REFUSED = "ControlRefused"
    """The server refused the control token or the API key."""
    REQUEST_REFUSED = "RequestRefused"
    """The API server refused a request of the operator."""
    RECONCILE_FAILED = "ReconcileFailed"
    """The operator failed to process the object."""


class JobReason(StrEnum):
    """Reasons on DistillJob conditions that the operator gives; a trainer's `FailureReason` is the other source."""

    SUSPENDED = "Suspended"
    """`spec.suspend` is true."""
    RESUMED = "Resumed"
    """`spec.suspend` was set back to false."""
    QUEUED = "Queued"
    """Other steps on the same Deployment or adapter come first, or as many steps are computed elsewhere as may be."""
    ADMITTED = "Admitted"
    """The job holds the Lease of its vLLM Deployment, or of its adapter where steps are computed elsewhere."""
    RUNNING = "Running"
    """A trainer is working."""
    RETRYING = "Retrying"
    """An attempt failed and is retried."""
    STEP_TAKEN = "StepTaken"
    """The step was taken and its version published."""
    ALREADY_PUBLISHED = "AlreadyPublished"
    """An earlier attempt had published the version."""
    IN_SERVICE = "InService"
    """Every ready vLLM pod serves the version, or one that descends from it."""
    PUTTING_INTO_SERVICE = "PuttingIntoService"
    """The version is being loaded into the vLLM pods."""
    PASSED_OVER = "PassedOver"
    """Another version should serve, and it is not known to descend from the job's."""
    COMPLETED = "Completed"
    """The version was published, and what becomes of it is decided."""
    ADAPTER_NOT_FOUND = "AdapterNotFound"
    """The adapter does not exist."""
    ADAPTER_NOT_READY = "AdapterNotReady"
    """The adapter is not ready."""
    NO_HANDOVER = "NoHandover"
    """Serving can't make room for the step, and the trainer has no GPU of its own."""
    SAMPLES_NOT_FOUND = "SamplesNotFound"
    """The object that holds the samples does not exist."""
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    """The job ran longer than `activeDeadlineSeconds`."""
    TRAINER_NOT_STARTED = "TrainerNotStarted"
    """The trainer's pod can't start."""
    RECOVERING = "Recovering"
    """The last attempt ended without a report; a recovery pod looks on the volume for its version."""
    TRAINER_LOST = "TrainerLost"
    """The trainer pod vanished without a result."""
    MAX_PAUSE_EXCEEDED = "MaxPauseExceeded"
    """The trainer did not wake serving in time, so the operator did."""
    ADAPTER_DELETED = "AdapterDeleted"
    """The adapter was deleted before the job was done."""
    REQUEST_REFUSED = "RequestRefused"
    """The API server refused a request of the operator for this job."""
    RECONCILE_FAILED = "ReconcileFailed"
    """The operator failed to process the job."""


def condition_of(conditions: Iterable[Condition], condition_type: str) -> Condition | None:
    """The condition of that type, or None."""
    return next((condition for condition in conditions if condition.type == condition_type), None)


def is_true(conditions: Iterable[Condition], condition_type: str) -> bool:
    """Whether the condition is present and True."""
    condition = condition_of(conditions, condition_type)
    return condition is not None and condition.status is ConditionStatus.TRUE


def telling_condition(conditions: Iterable[Condition]) -> Condition | None:
    """The condition that explains a job's phase: how it ended, or else the first stage that is not done."""
    known = list(conditions)
    for kind in (JobCondition.FAILED, JobCondition.COMPLETE, JobCondition.SUSPENDED):
        if is_true(known, kind):
            return condition_of(known, kind)
    steps = (JobCondition.ADMITTED, JobCondition.TRAINED, JobCondition.SERVED)
    done = max((number for number, kind in enumerate(steps) if is_true(known, kind)), default=-1)
    told = [condition_of(known, kind) for kind in (*steps[done + 1 :], *steps[max(done, 0) : done + 1])]
    return next((condition for condition in told if condition is not None), None)
