"""DistillJob: feedback on answers, to be turned into one training step of a LoraAdapter."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import Field, JsonValue

from claas_crds.base import OBJECT_NAME, ResourceModel
from claas_crds.v1alpha1.conditions import Condition
from claas_crds.v1alpha1.lora_adapter import RELATIVE_PATH, AdapterVersion, HandoverKind
from claas_crds.v1alpha1.training import DistillBatchItem, TrainingOverrides

KIND = "DistillJob"
PLURAL = "distilljobs"
LARGEST_INLINE_BYTES = 1_000_000
"""Of inline samples as JSON: a trainer's input Secret holds 1 MiB, and etcd takes 1.5 MiB for an object with its
status."""
_MOST_INLINE_SAMPLES = 20_000
"""No more fit; the API server estimates the cost of rules by it."""


class AdapterReference(ResourceModel):
    """A LoraAdapter in the same namespace."""

    name: str = Field(min_length=1, max_length=253, json_schema_extra={"pattern": OBJECT_NAME})
    """Its name."""


class KeyReference(ResourceModel):
    """One key of a ConfigMap or Secret in the same namespace."""

    name: str = Field(min_length=1, max_length=253, json_schema_extra={"pattern": OBJECT_NAME})
    """Name of the object."""
    key: str = Field(default="samples.json", min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")
    """Key that holds the samples: a JSON list of the same objects as in `inline`, or JSON lines."""


class FileReference(ResourceModel):
    """A file on a PersistentVolumeClaim in the same namespace."""

    claim_name: str = Field(min_length=1, max_length=253, json_schema_extra={"pattern": OBJECT_NAME})
    """Name of the claim."""
    path: str = Field(max_length=1024, json_schema_extra={"pattern": RELATIVE_PATH})
    """The file below the volume's root: a JSON list of samples, or JSON lines."""


class SamplesSource(ResourceModel):
    """Where the samples are; exactly one of the fields."""

    inline: list[DistillBatchItem] | None = Field(
        default=None,
        min_length=1,
        max_length=_MOST_INLINE_SAMPLES,
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    """The samples themselves, 1,000,000 bytes as JSON at most. Use server-side apply for large ones: client-side
    apply would keep a copy in an annotation."""
    config_map_ref: KeyReference | None = None
    """A key of a ConfigMap."""
    secret_ref: KeyReference | None = None
    """A key of a Secret: the place for private feedback."""
    file: FileReference | None = None
    """A file on a volume: the place for large batches."""


def _characters() -> str:
    """CEL: the least bytes that inline samples can have: a text's characters, a digit and a comma for a number."""
    needed = [f"s.{name}.size()" for name in ("user_prompt", "response", "feedback")]
    texts = [f"(has(s.{name}) ? s.{name}.size() : 0)" for name in ("system_prompt", "prompt")]
    numbers = [
        f"(has(s.{name}) ? 2 * s.{name}.size() : 0)"
        for name in ("prompt_token_ids", "response_token_ids", "response_logprobs")
    ]
    return f"self.inline.map(s, {' + '.join([*needed, *texts, *numbers])}).sum()"


_INLINE_FITS: list[JsonValue] = [
    {
        "rule": f"!has(self.inline) || {_characters()} <= {LARGEST_INLINE_BYTES}",
        "message": f"inline samples may have {LARGEST_INLINE_BYTES} bytes: put these on a volume (samples.file)",
    }
]


def _immutable(field: str) -> list[JsonValue]:
    return [{"rule": "self == oldSelf", "message": f"{field} is immutable: apply a new DistillJob instead"}]


class CompletionPoint(StrEnum):
    """When a job is done."""

    IN_SERVICE = "InService"
    """When every ready vLLM pod serves its version, or a later one."""
    PUBLISHED = "Published"
    """When its version is on the volume and in the adapter's history. It is put into service all the same, once there
    are pods to serve it."""


class DistillJobSpec(ResourceModel):
    """One step: which adapter, which feedback, and how."""

    adapter_ref: AdapterReference = Field(json_schema_extra={"x-kubernetes-validations": _immutable("adapterRef")})
    """The adapter to train. Immutable."""
    samples: SamplesSource = Field(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "[has(self.inline), has(self.configMapRef), has(self.secretRef), has(self.file)]"
                    ".filter(x, x).size() == 1",
                    "message": "exactly one of inline, configMapRef, secretRef and file must be set",
                },
                *_INLINE_FITS,
                *_immutable("samples"),
            ]
        }
    )
    """The feedback. Immutable."""
    training: TrainingOverrides = Field(
        default=TrainingOverrides(),
        json_schema_extra={"x-kubernetes-validations": _immutable("training")},
    )
    """Training settings of this step, in CLaaS's own names, over the adapter's `spec.training`. Immutable."""
    suspend: bool = False
    """Do not start, or end the running attempt; set back to false, the job queues again (batch/v1 Job)."""
    complete_when: CompletionPoint = CompletionPoint.IN_SERVICE
    """When the job is Complete. By default it waits for a ready vLLM pod before its step, and for its version to be
    in service after it. `Published` trains without serving too: a Deployment that is scaled to zero does not hold it
    up."""
    backoff_limit: int = Field(default=3, ge=0, le=20)
    """How many failed attempts are tried again before the job fails (batch/v1 Job). A step whose version was
    already published is never taken twice."""
    active_deadline_seconds: int = Field(default=3600, ge=1)
    """Seconds from `startTime` until the job is ended as failed (batch/v1 Job). Time in the queue does not count. It
    ends a step that hangs while serving goes on; until then other jobs of the Deployment wait. Give more to a first
    job that downloads a large model. A version that was published by then stays, and has a minute more to come into
    service. A job also waits this long, from its creation or from when it was resumed, for an adapter or for samples
    that do not exist yet."""
    ttl_seconds_after_finished: int | None = Field(default=None, ge=0)
    """Seconds after which a finished job is deleted (batch/v1 Job); never when left out. Its version stays."""


class JobPhase(StrEnum):
    """Where a job is, for people; programs read the conditions."""

    PENDING = "Pending"
    """Not looked at yet, or its adapter is not ready."""
    QUEUED = "Queued"
    """Waiting for the adapter's Deployment: one step at a time."""
    SUSPENDED = "Suspended"
    """Told not to run."""
    PREPARING = "Preparing"
    """The trainer checks samples and loads the model; serving goes on."""
    PAUSING = "Pausing"
    """Serving is being paused (hand-over Sleep)."""
    TRAINING = "Training"
    """The step is being taken; serving is paused (hand-over Sleep), or goes on beside it."""
    RESUMING = "Resuming"
    """Serving is being woken (hand-over Sleep)."""
    PUBLISHING = "Publishing"
    """The new version is being written to the volume; serving goes on."""
    SWAPPING = "Swapping"
    """The new version is being put into service."""
    SUCCEEDED = "Succeeded"
    """The new version is in service; with `completeWhen: Published` it is published."""
    FAILED = "Failed"
    """No step was taken, or its version could not be put into service."""


class Timings(ResourceModel):
    """Seconds that each part of the step took. All but `queued` and `servingGap` follow each other: together they are
    the time from `startTime` to `completionTime`."""

    queued: float | None = None
    """From the job's creation to its admission."""
    retried: float | None = None
    """Failed attempts, and the waits between them."""
    start: float | None = None
    """From the attempt's turn to its work: the pod is made, scheduled and started, images are pulled, programs
    loaded."""
    prepare: float | None = None
    """Checks, tokenising, loading weights; serving goes on."""
    sleep: float | None = None
    """Until serving was paused and its memory free."""
    load: float | None = None
    """Weights to the device."""
    step: float | None = None
    """Forward, backward and optimiser."""
    release: float | None = None
    """Until the device was given back."""
    wake: float | None = None
    """Until serving answered again."""
    publish: float | None = None
    """Writing the version; serving goes on."""
    swap: float | None = None
    """Load, probe and flip."""
    settle: float | None = None
    """The rest, until the job was complete: the trainer ends, the operator sees it, and what the trainer did not put
    into service is."""
    serving_gap: float | None = None
    """The pause as clients see it: from the pause call to serving awake. 0 when the step was taken beside serving."""

    @property
    def seconds(self) -> float:
        """The parts that follow each other, together."""
        parts = self.model_dump(exclude_none=True, exclude={"queued", "serving_gap"})
        return sum(float(value) for value in parts.values())


class SampleCounts(ResourceModel):
    """What the step was taken on."""

    total: int = 0
    """Samples in the batch."""
    recorded: int = 0
    """Samples with the token ids and log-probabilities of a recorded rollout."""
    reconstructed: int = 0
    """Samples whose token ids or log-probabilities were made by the trainer: ratio 1."""
    response_tokens: int = 0
    """Tokens the loss was averaged over."""
    recorded_prompts: int = 0
    """Samples whose prompt was recorded with the answer."""
    server_prompts: int = 0
    """Samples whose prompt was made as the server makes it: by its chat template and template arguments."""
    template_prompts: int = 0
    """Samples whose prompt was made by the model's own chat template, since no server could be asked."""
    hints_inserted: int = 0
    """Samples whose recorded prompt the teacher sees, with the feedback after the user's last message."""
    rebuilt_conversations: int = 0
    """Samples with a recorded prompt that does not end with `user_prompt`: the teacher sees a conversation of the
    sample's texts instead, without what only the prompt has."""


class DistillJobStatus(ResourceModel):
    """How far the job is and what came of it."""

    observed_generation: int | None = None
    """The generation of the spec that this status is about."""
    phase: JobPhase | None = None
    """Where the job is, for people."""
    reason: str | None = None
    """Why it is there, for people: the reason of the condition that tells it."""
    message: str | None = None
    """The same as a sentence."""
    conditions: list[Condition] = Field(
        default=[],
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    """Admitted, Trained, Served, and in the end Complete or Failed; Suspended."""
    attempts: int = 0
    """Trainer pods started so far."""
    failed_attempts: int = 0
    """Attempts that failed and count against backoffLimit."""
    lora_id: str | None = None
    """The adapter's CLaaS identifier with the version this job produced."""
    start_time: datetime | None = None
    """When the job was first admitted."""
    completion_time: datetime | None = None
    """When it finished, either way."""
    retry_time: datetime | None = None
    """Not before this time is the next attempt made."""
    recovery_time: datetime | None = None
    """Since when it is being found out what the last attempt left on the volume; absent when that is known."""
    timings: Timings = Timings()
    """Seconds by phase."""
    serving_gap: str | None = None
    """`timings.servingGap`, for people."""
    samples: SampleCounts = SampleCounts()
    """What the step was taken on."""
    handover: HandoverKind | None = None
    """What became of serving during the step: the hand-over of the current or last attempt."""
    metrics: dict[str, float] = {}
    """loss, grad_norm and what else the engine measured; `serving_slowdown_percent` with the hand-over Share."""
    loss: str | None = None
    """`metrics.loss`, for people."""
    parent_version: int | None = None
    """The version the step started from."""
    produced_version: int | None = None
    """The version it published."""
    produced_path: str | None = None
    """That version's folder below the volume's root."""
    produced_digest: str | None = None
    """That version's digest."""
    published_time: datetime | None = None
    """When it was published."""
    rejected_version: AdapterVersion | None = None
    """A version that serving refused: the one that this job made, or the one that it was to start from."""
    trainer_job: str | None = None
    """The batch Job of the current or last attempt."""


class DistillJob(ResourceModel):
    """Feedback on answers; the operator turns it into one training step of the adapter and puts the new version
    into service."""

    spec: DistillJobSpec
    """One step: which adapter, which feedback, and how."""
    status: DistillJobStatus = DistillJobStatus()
    """How far the job is and what came of it. Written by the operator."""
