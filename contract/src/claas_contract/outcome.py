"""What a trainer pod is asked for, and how it can end."""

from __future__ import annotations

from enum import IntEnum, StrEnum


class TrainerCommand(StrEnum):
    """What a trainer pod is asked for: the argument of `python -m claas_trainer`."""

    RUN = "run"
    """One attempt at a job."""
    INIT = "init"
    """The initial version of an adapter."""
    RECOVER = "recover"
    """Look for the version of a job whose last attempt ended without telling. It needs the adapter's volume alone and
    writes nothing: no GPU, no model, no server."""


class ExitCode(IntEnum):
    """What the trainer's exit code tells the operator: whether another attempt can help."""

    SUCCEEDED = 0
    """A version was published by this attempt or found published by an earlier one."""
    PERMANENT = 64
    """The input is wrong, or the step itself failed its checks: another attempt would fail alike."""
    RETRYABLE = 75
    """Something around the step failed: another attempt may succeed."""


class FailureReason(StrEnum):
    """Why a trainer failed; becomes the reason of the job's Failed condition."""

    INVALID_INPUT = "InvalidInput"
    """The input document or a training setting is wrong."""
    INVALID_SAMPLE = "InvalidSample"
    """A sample is wrong; the message names the sample and the field."""
    MODEL_NOT_FOUND = "ModelNotFound"
    """The base model, its tokenizer or chat template can't be read."""
    HUB_UNREACHABLE = "HubUnreachable"
    """The model is on a hub that does not answer, and not in the cache."""
    PARENT_NOT_FOUND = "ParentNotFound"
    """The version to train from is not on the volume."""
    PARENT_CORRUPT = "ParentCorrupt"
    """The version to train from does not match its digest."""
    PARENT_REJECTED = "ParentRejected"
    """The version to train from was refused by serving."""
    ENGINE_UNAVAILABLE = "EngineUnavailable"
    """The engine can't be had in this image or on this node."""
    GPU_MISMATCH = "GpuMismatch"
    """The trainer's GPU is not vLLM's."""
    GPU_MEMORY_NOT_FREED = "GpuMemoryNotFreed"
    """vLLM slept and its GPU memory did not become free."""
    OUT_OF_MEMORY = "OutOfMemory"
    """The step does not fit."""
    VLLM_UNREACHABLE = "VllmUnreachable"
    """A vLLM pod does not answer."""
    CONTROL_REFUSED = "ControlRefused"
    """The companion's lock refused the control token."""
    ALREADY_ASLEEP = "AlreadyAsleep"
    """Somebody else has paused serving."""
    DRAIN_TIMED_OUT = "DrainTimedOut"
    """Running requests were not answered within drainTimeoutSeconds."""
    PAUSE_FAILED = "PauseFailed"
    """vLLM refused to pause."""
    RESUME_FAILED = "ResumeFailed"
    """vLLM could not be woken; the operator goes on trying."""
    SERVING_LOST = "ServingLost"
    """vLLM ended while the step used its weights."""
    WEIGHTS_NOT_SHAREABLE = "WeightsNotShareable"
    """The weights that vLLM serves can't be trained on as they are."""
    MAX_PAUSE_EXCEEDED = "MaxPauseExceeded"
    """The step needs a longer pause than maxPauseSeconds: it was not begun, or it was ended."""
    NOT_FINITE = "NotFinite"
    """Loss or gradient is NaN or infinite."""
    POLICY_MOVED = "PolicyMoved"
    """The step moved the policy further than `max_kl` allows."""
    ADAPTER_MISMATCH = "AdapterMismatch"
    """The versions on the volume are of another shape or another base model than the adapter."""
    FOREIGN_ADAPTER = "ForeignAdapter"
    """The adapter's folder holds an adapter that was not made here."""
    STORAGE_UNSUITABLE = "StorageUnsuitable"
    """The volume's file system lacks an operation that publishing needs."""
    STORAGE_FULL = "StorageFull"
    """The volume has no space left."""
    STORAGE_READ_ONLY = "StorageReadOnly"
    """The volume can't be written."""
    STORAGE_FAILED = "StorageFailed"
    """The volume failed in another way."""
    PUBLISH_CONFLICT = "PublishConflict"
    """Another job published from the same parent meanwhile."""
    VERSION_REJECTED = "VersionRejected"
    """vLLM refused the new version, or it failed its probe; the old one stays in service."""
    INTERRUPTED = "Interrupted"
    """The pod was told to end."""
    INTERNAL = "InternalError"
    """A fault of the trainer itself; its log has the trace."""


PERMANENT_REASONS = frozenset(
    {
        FailureReason.INVALID_INPUT,
        FailureReason.INVALID_SAMPLE,
        FailureReason.MODEL_NOT_FOUND,
        FailureReason.PARENT_CORRUPT,
        FailureReason.ADAPTER_MISMATCH,
        FailureReason.FOREIGN_ADAPTER,
        FailureReason.ENGINE_UNAVAILABLE,
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
"""Reasons after which another attempt would fail alike. All others can pass with time (a volume that is read-only for
a while, a token that a pod does not have yet, a version that another node does not see yet) and are retried up to
backoffLimit, later and later."""


def exit_code_for(reason: FailureReason) -> ExitCode:
    """The exit code that goes with a reason."""
    return ExitCode.PERMANENT if reason in PERMANENT_REASONS else ExitCode.RETRYABLE
