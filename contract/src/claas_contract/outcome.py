"""The trainer's commands, exit codes and failure reasons."""

from __future__ import annotations

from enum import IntEnum, StrEnum


class TrainerCommand(StrEnum):
    """Command of a trainer pod: the argument of `python -m claas_trainer`."""

    RUN = "run"
    """One attempt at a job."""
    INIT = "init"
    """Make the initial version of an adapter."""
    RECOVER = "recover"
    """Look on the volume for the version of a job whose last attempt ended without a report. Needs the adapter's
    volume only (no GPU, model or server) and writes nothing."""


class ExitCode(IntEnum):
    """Exit codes of the trainer; they say whether a retry can help."""

    SUCCEEDED = 0
    """This attempt published a version, or found the one that an earlier attempt had published."""
    PERMANENT = 64
    """The input is wrong, or the step failed its checks: a retry would fail in the same way."""
    RETRYABLE = 75
    """Something else failed: a retry may succeed."""


class FailureReason(StrEnum):
    """Why a trainer failed; becomes the reason of the job's Failed condition."""

    INVALID_INPUT = "InvalidInput"
    """The input document or a training setting is wrong."""
    INVALID_SAMPLE = "InvalidSample"
    """A sample is wrong; the message names the sample and the field."""
    MODEL_NOT_FOUND = "ModelNotFound"
    """The base model, its tokenizer or chat template can't be read."""
    HUB_UNREACHABLE = "HubUnreachable"
    """The hub that has the model does not answer, and the cache does not hold it."""
    PARENT_NOT_FOUND = "ParentNotFound"
    """The version to train from is not on the volume."""
    PARENT_CORRUPT = "ParentCorrupt"
    """The version to train from does not match its digest."""
    PARENT_REJECTED = "ParentRejected"
    """Serving rejected the version to train from."""
    ENGINE_UNAVAILABLE = "EngineUnavailable"
    """The engine is not available in this image or on this node."""
    CREDENTIALS_REFUSED = "CredentialsRefused"
    """The engine's service refused the API key."""
    BILLING_REQUIRED = "BillingRequired"
    """The engine's service wants to be paid first."""
    RATE_LIMITED = "RateLimited"
    """The engine's service refused requests because there were too many."""
    MODEL_RETIRED = "ModelRetired"
    """The engine's service does not train the base model, or does not any more."""
    CHECKPOINT_EXPIRED = "CheckpointExpired"
    """The engine's service no longer has the checkpoint of the version to train from."""
    SERVICE_UNREACHABLE = "ServiceUnreachable"
    """The engine's service does not answer, or not in time."""
    APP_NOT_DEPLOYED = "AppNotDeployed"
    """The engine's service has no app of that name, or one of another release or base model."""
    STEP_TIMED_OUT = "StepTimedOut"
    """The engine's service did not finish the step in its time; it was ended."""
    CALL_LOST = "CallLost"
    """The engine's service lost the step: its container died for good, or its answer was kept no longer."""
    GPU_MISMATCH = "GpuMismatch"
    """The trainer's GPU is not vLLM's."""
    GPU_MEMORY_NOT_FREED = "GpuMemoryNotFreed"
    """vLLM slept, but its GPU memory did not become free."""
    OUT_OF_MEMORY = "OutOfMemory"
    """The step does not fit into memory."""
    VLLM_UNREACHABLE = "VllmUnreachable"
    """A vLLM pod does not answer."""
    CONTROL_REFUSED = "ControlRefused"
    """The companion's lock refused the control token."""
    ALREADY_ASLEEP = "AlreadyAsleep"
    """Somebody else has paused serving."""
    DRAIN_TIMED_OUT = "DrainTimedOut"
    """Running requests were not completed within drainTimeoutSeconds."""
    PAUSE_FAILED = "PauseFailed"
    """vLLM refused to pause."""
    RESUME_FAILED = "ResumeFailed"
    """The trainer could not wake vLLM; the operator keeps trying."""
    SERVING_LOST = "ServingLost"
    """vLLM ended while the step used its weights."""
    WEIGHTS_NOT_SHAREABLE = "WeightsNotShareable"
    """The step can't use the weights that vLLM serves."""
    MAX_PAUSE_EXCEEDED = "MaxPauseExceeded"
    """The step needs a longer pause than maxPauseSeconds: it was not started, or it was ended."""
    NOT_FINITE = "NotFinite"
    """The loss or the gradient is NaN or infinite."""
    POLICY_MOVED = "PolicyMoved"
    """The step moved the policy further than `max_kl` allows."""
    ADAPTER_MISMATCH = "AdapterMismatch"
    """The versions on the volume have another shape or base model than the adapter."""
    FOREIGN_ADAPTER = "ForeignAdapter"
    """The adapter's folder holds an adapter of another trainer."""
    STORAGE_UNSUITABLE = "StorageUnsuitable"
    """The volume's file system lacks an operation that publishing needs."""
    STORAGE_FULL = "StorageFull"
    """The volume has no space left."""
    STORAGE_READ_ONLY = "StorageReadOnly"
    """The volume is read-only."""
    STORAGE_FAILED = "StorageFailed"
    """Another error of the volume."""
    PUBLISH_CONFLICT = "PublishConflict"
    """Another job has published from the same parent meanwhile."""
    VERSION_REJECTED = "VersionRejected"
    """vLLM refused to load the new version, or it failed its probe; the old one stays in service."""
    INTERRUPTED = "Interrupted"
    """The pod was asked to end."""
    INTERNAL = "InternalError"
    """A bug in the trainer; its log has the traceback."""


PERMANENT_REASONS = frozenset(
    {
        FailureReason.INVALID_INPUT,
        FailureReason.INVALID_SAMPLE,
        FailureReason.MODEL_NOT_FOUND,
        FailureReason.PARENT_CORRUPT,
        FailureReason.ADAPTER_MISMATCH,
        FailureReason.FOREIGN_ADAPTER,
        FailureReason.ENGINE_UNAVAILABLE,
        FailureReason.MODEL_RETIRED,
        FailureReason.CHECKPOINT_EXPIRED,
        FailureReason.GPU_MISMATCH,
        FailureReason.OUT_OF_MEMORY,
        FailureReason.WEIGHTS_NOT_SHAREABLE,
        FailureReason.MAX_PAUSE_EXCEEDED,
        FailureReason.NOT_FINITE,
        FailureReason.POLICY_MOVED,
        FailureReason.STORAGE_UNSUITABLE,
        FailureReason.VERSION_REJECTED,
    }
)
"""Reasons after which a retry would fail in the same way. The causes of all others may pass (a volume that is
read-only for a while, a token that has not reached a pod, a version that another node does not see yet); they are
retried with back-off, up to backoffLimit."""


def exit_code_for(reason: FailureReason) -> ExitCode:
    """Exit code for a failure reason."""
    return ExitCode.PERMANENT if reason in PERMANENT_REASONS else ExitCode.RETRYABLE
