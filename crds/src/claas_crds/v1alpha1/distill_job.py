"""DistillJob: feedback on answers, to be turned into one training step of a LoraAdapter."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import Field, JsonValue

from claas_crds.base import OBJECT_NAME, ResourceModel
from claas_crds.v1alpha1.conditions import Condition
from claas_crds.v1alpha1.lora_adapter import RELATIVE_PATH
from claas_crds.v1alpha1.serving import HandoverKind
from claas_crds.v1alpha1.step import MOST_INVALID_SAMPLES, InvalidSample, JobPhase, SampleCounts, Timings
from claas_crds.v1alpha1.training import DistillBatchItem, TrainingOverrides
from claas_crds.v1alpha1.version import AdapterVersion

KIND = "DistillJob"

PLURAL = "distilljobs"

LARGEST_INLINE_BYTES = 1_000_000
"""Limit of inline samples, in bytes of JSON. A trainer's input Secret holds 1 MiB, and etcd takes 1.5 MiB for an
object with its status."""

_MOST_INLINE_SAMPLES = 20_000
"""More do not fit into the byte limit. The API server needs the number to estimate the cost of validation rules."""


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
    """CEL expression for a lower bound on the bytes of inline samples: one for each character, two for each
    number."""
    needed = [f"s.{name}.size()" for name in ("user_prompt", "response")]
    texts = [
        f"(has(s.{name}) ? s.{name}.size() : 0)" for name in ("feedback", "correction", "system_prompt", "prompt")
    ]
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
    """When its version is on the volume and in the adapter's history. The version still goes into service as soon as
    there are pods to serve it."""


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
    """Training settings of this step, under CLaaS's names. They override the adapter's `spec.training`. Immutable."""
    suspend: bool = False
    """Do not start the job, or end its running attempt. Set back to false, the job joins the queue again (as in
    batch/v1 Job)."""
    complete_when: CompletionPoint = CompletionPoint.IN_SERVICE
    """When the job is Complete. By default the job waits for a ready vLLM pod before its step, and for its version to
    be in service afterwards. With `Published` it also trains while nothing serves, for example while the Deployment
    is scaled to zero."""
    backoff_limit: int = Field(default=3, ge=0, le=20)
    """How many failed attempts are retried before the job fails (as in batch/v1 Job). A step whose version is
    published is never taken again."""
    active_deadline_seconds: int = Field(default=3600, ge=1)
    """Seconds from `startTime` until the job fails (as in batch/v1 Job). Time in the queue does not count. The
    deadline also ends a step that hangs while serving goes on; until then other jobs of the Deployment wait. Allow
    more for a first job that downloads a large model. A version published before the deadline stays, and has one more
    minute to come into service. A job also waits this long, counted from its creation or resumption, for an adapter
    or samples that do not exist yet."""
    ttl_seconds_after_finished: int | None = Field(default=None, ge=0)
    """Seconds after which a finished job is deleted (batch/v1 Job). Its version stays. When left out, the chart's
    `defaultTtlSecondsAfterFinished` applies; without that, the job is never deleted."""


class DistillJobStatus(ResourceModel):
    """Progress and result of the job."""

    observed_generation: int | None = None
    """The generation of the spec that this status is about."""
    phase: JobPhase | None = None
    """Progress of the job, for people."""
    reason: str | None = None
    """Reason of the condition that explains the phase, for people."""
    message: str | None = None
    """Message of that condition."""
    conditions: list[Condition] = Field(
        default=[],
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    """Admitted, Trained and Served; finally Complete or Failed; Suspended while suspended."""
    attempts: int = 0
    """Trainer pods started so far."""
    failed_attempts: int = 0
    """Attempts that failed and count against backoffLimit."""
    lora_id: str | None = None
    """The adapter's CLaaS identifier with the version this job produced."""
    start_time: datetime | None = None
    """When the job was first admitted."""
    completion_time: datetime | None = None
    """When it completed or failed."""
    retry_time: datetime | None = None
    """The next attempt starts no earlier than this."""
    recovery_time: datetime | None = None
    """When the search for a version of the last attempt on the volume began; absent when none is under way."""
    timings: Timings = Timings()
    """Seconds by phase."""
    serving_gap: str | None = None
    """`timings.servingGap`, for people."""
    samples: SampleCounts = SampleCounts()
    """Counts of the samples that the step was taken on."""
    invalid_samples: list[InvalidSample] = Field(default=[], max_length=MOST_INVALID_SAMPLES)
    """The samples for which the job failed with the reason InvalidSample, by index; the first 50 of them. The message
    says how many there are."""
    handover: HandoverKind | None = None
    """Hand-over of the current or last attempt: what happens to serving during the step."""
    metrics: dict[str, float] = {}
    """`loss`, `grad_norm` and other measurements of the engine; with the hand-over Share also
    `serving_slowdown_percent`."""
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
    produced_weights: str | None = None
    """Address of that version's weights in the engine's service; unset if they are in its folder alone."""
    published_time: datetime | None = None
    """When it was published."""
    rejected_version: AdapterVersion | None = None
    """The version that serving rejected: the one this job made, or the one it was to start from."""
    trainer_job: str | None = None
    """The batch Job of the current or last attempt."""


class DistillJob(ResourceModel):
    """Feedback on answers; the operator turns it into one training step of the adapter and puts the new version
    into service."""

    spec: DistillJobSpec
    """One step: which adapter, which feedback, and how."""
    status: DistillJobStatus = DistillJobStatus()
    """Progress and result of the job. Written by the operator."""
