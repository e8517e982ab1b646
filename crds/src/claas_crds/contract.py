"""The contract between operator and trainer.

A trainer pod is given one `TrainerInput` as a mounted file and the samples as another; it has no right to ask the
cluster anything. It answers with one `TrainerResult` as its termination message (4 KiB at most) and an exit code,
and while it runs it tells its `Progress` over HTTP. Details lie beside the published version.
"""

from __future__ import annotations

from datetime import datetime
from enum import IntEnum, StrEnum

from pydantic import BaseModel, ConfigDict, Field

from claas_crds.distill_job import JobPhase, SampleCounts, Timings
from claas_crds.lora_adapter import EngineName, HandoverKind, LoraSpec, PauseMode, Probe, VersionVerdict
from claas_crds.training import TrainingConfig

INPUT_DIRECTORY = "/var/run/claas/input"
INPUT_FILE = f"{INPUT_DIRECTORY}/input.json"
SAMPLES_DIRECTORY = "/var/run/claas/samples"
CONTROL_TOKEN_FILE = "/var/run/claas/control/token"
API_KEY_FILE = "/var/run/claas/api-key/token"
SERVING_CA_FILE = "/var/run/claas/serving-ca/ca.crt"
HUB_TOKEN_FILE = "/var/run/claas/hub-token/token"
STORAGE_DIRECTORY = "/var/lib/claas/storage"
MODEL_DIRECTORY = "/var/lib/claas/model"
HUB_CACHE_DIRECTORY = "/var/lib/claas/hub-cache"
SCRATCH_DIRECTORY = "/tmp"
TERMINATION_MESSAGE_FILE = "/dev/termination-log"
TERMINATION_MESSAGE_LIMIT_BYTES = 4096
PROGRESS_PORT = 8080
PROGRESS_PATH = "/progress"
EXECUTION_MODE_VARIABLE = "CLAAS_DISTILL_EXECUTION_MODE"


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


class ContractModel(BaseModel):
    """Part of a document between operator and trainer: snake_case, unknown fields refused, values never echoed."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True)


class JobIdentity(ContractModel):
    """The DistillJob an attempt belongs to."""

    namespace: str
    name: str
    uid: str
    attempt: int = Field(ge=1)


class AdapterIdentity(ContractModel):
    """The LoraAdapter to train."""

    namespace: str
    name: str
    uid: str
    lora_id: str


class ModelLocation(ContractModel):
    """Where the base model is, from inside the pod: a folder, or a repository on the hub."""

    path: str | None = None
    repository: str | None = None
    revision: str | None = None


class VllmPod(ContractModel):
    """One vLLM server."""

    name: str
    """Name of the pod."""
    uid: str
    """UID of the pod: a pod of the same name made later is another one."""
    url: str
    """`<scheme>://<pod address>:<port>`."""
    storage_path: str | None = None
    """Where that pod mounts the adapter's folder (`<mountPath>/<path on the volume>`); None when it does not."""


class ServerTrust(ContractModel):
    """How servers whose URLs begin with https are verified."""

    has_ca: bool = False
    """Whether SERVING_CA_FILE is mounted; public CAs otherwise."""
    server_name: str | None = None
    """A name that their certificates are for; None: their addresses."""


class ServingTarget(ContractModel):
    """The servers of the adapter and how to treat them."""

    served_name: str
    pods: list[VllmPod]
    """Every ready pod; the hand-over says what becomes of each for the step, and each is swapped after it. Empty:
    nothing is served, the step is taken all the same."""
    handover: HandoverKind = HandoverKind.SLEEP
    """The one that the operator chose; never Auto."""
    max_slowdown_percent: int = Field(default=40, ge=1, le=90)
    """Of its tokens a second that serving may lose during the step; Share only."""
    pause: PauseMode = PauseMode.KEEP
    drain_timeout_seconds: int = 30
    max_pause_seconds: int = 120
    probe: Probe = Probe()
    has_control_token: bool = False
    """Whether CONTROL_TOKEN_FILE is mounted."""
    has_api_key: bool = False
    """Whether API_KEY_FILE is mounted."""
    tls: ServerTrust = ServerTrust()


class TrainerInput(ContractModel):
    """All that a trainer pod is told. For `run`, `job`, `parent` and `samples_file` are set; for `recover` `job`
    alone, the one whose version is looked for; for `init` none of them."""

    adapter: AdapterIdentity
    engine: EngineName = EngineName.LOCAL
    model: ModelLocation
    lora: LoraSpec
    storage_path: str
    """The adapter's folder below STORAGE_DIRECTORY."""
    job: JobIdentity | None = None
    parent: int | None = None
    """Version to train from."""
    samples_file: str | None = None
    """A JSON list of samples (`DistillBatchItem`), as a path in the pod."""
    training: TrainingConfig = TrainingConfig()
    serving: ServingTarget | None = None


class PublishedVersion(ContractModel):
    """A version on the volume."""

    number: int
    path: str
    """Below the volume's root."""
    digest: str
    created: datetime
    parent: int | None = None
    job_name: str | None = None
    job_uid: str | None = None
    metrics: dict[str, float] = {}
    verdict: VersionVerdict = VersionVerdict.UNTRIED
    """As it stands beside the version on the volume."""


class TrainerResult(ContractModel):
    """What came of an attempt; at most 4,096 bytes as JSON."""

    succeeded: bool
    reason: FailureReason | None = None
    message: str = ""
    """One sentence for people: what was wrong, where, what to do. Never a sample's text."""
    version: PublishedVersion | None = None
    """The version that was published, for `init` the newest one found or made, for `recover` the whole one that the
    job published and that nobody refused. None after a `recover` that succeeded: there is no such version. With the
    reasons VersionRejected and ParentRejected, the version that was refused."""
    already_published: bool = False
    """An earlier attempt had published it: no step was taken by this one."""
    began: datetime | None = None
    """When its work began, after everything was loaded for it; None where nobody could tell."""
    swapped_pods: list[str] = []
    """Pods that serve the version."""
    samples: SampleCounts = SampleCounts()
    timings: Timings = Timings()

    def to_termination_message(self) -> str:
        """JSON of at most 4,096 bytes; a message that is too long is cut."""
        text = self.model_dump_json(exclude_none=True)
        excess = len(text.encode()) - TERMINATION_MESSAGE_LIMIT_BYTES
        if excess <= 0:
            return text
        kept = self.message.encode()[: max(0, len(self.message.encode()) - excess - 64)].decode(errors="ignore")
        return self.model_copy(update={"message": kept + " [cut]", "swapped_pods": []}).model_dump_json(
            exclude_none=True
        )


class Progress(ContractModel):
    """Where a running trainer is; served at PROGRESS_PATH."""

    phase: JobPhase
    detail: str = ""
    """Such as `micro-batch 3 of 8`."""
    paused_since: datetime | None = None
    """When serving was paused, while it is."""
