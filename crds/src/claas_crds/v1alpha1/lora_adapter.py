"""LoraAdapter: a LoRA adapter that keeps learning, where it is kept, and which vLLM serves it."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, ConfigDict, Field, JsonValue, WithJsonSchema

from claas_crds.base import OBJECT_NAME, ResourceModel
from claas_crds.v1alpha1.conditions import Condition
from claas_crds.v1alpha1.tls import (
    SERVING_RULES,
    TLS_RULES,
    Scheme,
    ServingTls,
)
from claas_crds.v1alpha1.trainer_pod import SecretKeyRef, TrainerPod
from claas_crds.v1alpha1.training import LORA_ID_PATTERN, TrainingConfig

KIND = "LoraAdapter"
PLURAL = "loraadapters"
HISTORY_LIMIT = 20
"""How many versions `status.versions` names; older ones stay on the volume."""

SERVED_NAME_LIMIT = 200
"""How long a served name may be; the companion has the same limit, and room for the version behind it."""

_NOT_IN_PATHS = r"/\x00-\x1f\x7f"
_SEGMENT = rf"[^{_NOT_IN_PATHS}]*[^.{_NOT_IN_PATHS}][^{_NOT_IN_PATHS}]*"
RELATIVE_PATH = rf"^{_SEGMENT}(/{_SEGMENT})*$"
"""A path below a volume's root, in any script: no segment is made of dots alone, so that none leads out of it."""


def _without_end(path: str) -> str:
    return path.rstrip("/")


Folder: TypeAlias = Annotated[str, AfterValidator(_without_end)]
"""A folder below a volume's root; a slash at its end, as shells write it, means nothing."""
FOLDER_PATH = rf"{RELATIVE_PATH[:-1]}/?$"


class EngineName(StrEnum):
    """Where a training step is computed."""

    LOCAL = "local"
    """PyTorch in the trainer pod, on a GPU or a CPU."""


class PauseMode(StrEnum):
    """What becomes of running requests when serving pauses (vLLM's `mode`)."""

    KEEP = "Keep"
    """They freeze where they are and go on after the step: nothing fails, nothing waits for long answers."""
    WAIT = "Wait"
    """They are answered first, for `drainTimeoutSeconds` at most."""
    ABORT = "Abort"
    """They end with an error."""


class HandoverKind(StrEnum):
    """What becomes of serving while a step is taken (docs/handover.md)."""

    AUTO = "Auto"
    """The operator chooses, by the flags of the Deployment; `status.handover` says what and why."""
    SLEEP = "Sleep"
    """vLLM freezes its requests and gives its GPU memory away for the step."""
    SHARE = "Share"
    """vLLM goes on, and the step is taken beside it: on a GPU with the very weights that vLLM serves, on a CPU with
    the model's files mapped."""
    NONE = "None"
    """vLLM goes on, and the trainer has a GPU of its own, or a CPU, with a copy of the weights."""


class VersionVerdict(StrEnum):
    """What serving has said of a version."""

    UNTRIED = "Untried"
    """No step has put it into service, nor been refused."""
    SERVED = "Served"
    """It was loaded, answered its probe, and went into service."""
    REJECTED = "Rejected"
    """vLLM refused it, or it failed its probe: it is neither served nor trained from."""


class ClaimVolume(ResourceModel):
    """A folder on a PersistentVolumeClaim of the same namespace."""

    claim_name: str = Field(min_length=1, max_length=253, json_schema_extra={"pattern": OBJECT_NAME})
    """Name of the claim."""
    path: Folder = Field(default="", max_length=1024, json_schema_extra={"pattern": rf"^({FOLDER_PATH[1:-1]})?$"})
    """Folder below the volume's root; the root itself when empty."""


class HubModel(ResourceModel):
    """A model on the Hugging Face hub, kept in a cache volume."""

    repository: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$", max_length=200)
    """Such as `Qwen/Qwen3-8B`."""
    revision: str | None = None
    """Branch, tag or commit; pin a commit for steps that can be repeated."""
    token_secret_ref: SecretKeyRef | None = None
    """Token for gated models."""
    cache_claim_name: str | None = Field(default=None, max_length=253, json_schema_extra={"pattern": OBJECT_NAME})
    """PersistentVolumeClaim that keeps downloads; without one each step downloads the model anew."""


class ModelSource(ResourceModel):
    """Where the trainer reads the base model; exactly one of the fields."""

    persistent_volume_claim: ClaimVolume | None = None
    """A folder with config, tokenizer and safetensors files."""
    hub: HubModel | None = None
    """A repository on the hub."""


class BaseModelSpec(ResourceModel):
    """The base model."""

    name: str = Field(min_length=1, max_length=253)
    """The name under which vLLM serves the base model (`--served-model-name`)."""
    source: ModelSource = Field(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "has(self.persistentVolumeClaim) != has(self.hub)",
                    "message": "exactly one of persistentVolumeClaim and hub must be set",
                }
            ]
        }
    )
    """Where the trainer reads it."""


TargetModules: TypeAlias = Annotated[
    Annotated[str, Field(min_length=1, max_length=1024)]
    | Annotated[list[Annotated[str, Field(min_length=1, max_length=253)]], Field(min_length=1, max_length=256)],
    WithJsonSchema(
        {
            # Text or a list, which no type of a structural schema is. Without a type a bound is for values of its
            # kind alone, and no number is within these.
            "x-kubernetes-preserve-unknown-fields": True,
            "minLength": 1,
            "maxLength": 1024,
            "minItems": 1,
            "maxItems": 256,
            "items": {"type": "string", "minLength": 1, "maxLength": 253},
            "maxProperties": 0,
            "minimum": 1,
            "maximum": 0,
            "not": {"enum": [True, False, {}]},
        }
    ),
]
"""Layers by name, or by a pattern (PEFT's `target_modules`)."""


class LoraSpec(ResourceModel):
    """Shape of the adapter."""

    rank: int = Field(default=32, ge=4, le=128)
    """Rank r; vLLM's `--max-lora-rank` must be at least this."""
    alpha: int = Field(default=64, ge=1, le=256)
    """Scaling: the adapter's output is multiplied by alpha / rank."""
    target_modules: TargetModules | None = None
    """Which linear layers of the language model get an adapter, as in PEFT: a list of names (`[q_proj, v_proj]`) or
    of endings of dotted ones, a regular expression over whole names, or `all-linear`. All that fit the model when
    left out. Embeddings, head and experts can't be among them."""


class DeploymentReference(ResourceModel):
    """A Deployment in the same namespace."""

    name: str = Field(min_length=1, max_length=253, json_schema_extra={"pattern": OBJECT_NAME})
    """Its name."""


class Probe(ResourceModel):
    """The request that shows that a version which was loaded really answers, and not the base in its place."""

    prompt: str = Field(default="Hello", min_length=1, max_length=4096)
    """A fixed prompt, asked at temperature 0; best one whose answer your feedback changes."""
    max_tokens: int = Field(default=8, ge=1, le=256)
    """Length of the answer."""


class Serving(ResourceModel):
    """The vLLM servers of the adapter."""

    deployment_ref: DeploymentReference
    """The Deployment whose pods run vLLM."""
    container: str | None = None
    """The container that runs vLLM; the first one of the Deployment's template when left out."""
    port: int = Field(default=8000, ge=1, le=65535)
    """vLLM's port."""
    scheme: Scheme = Scheme.HTTP
    """What vLLM speaks on it; `https` with `--ssl-certfile`."""
    tls: ServingTls | None = Field(default=None, json_schema_extra={"x-kubernetes-validations": TLS_RULES})
    """How its certificate is verified; with `scheme: https` only."""
    served_name: str | None = Field(
        default=None, min_length=1, max_length=SERVED_NAME_LIMIT, json_schema_extra={"pattern": LORA_ID_PATTERN}
    )
    """The model name clients ask for; the adapter's name when left out."""
    control_token_secret_ref: SecretKeyRef | None = None
    """The token of the companion's lock. Without it the server's control routes must be open."""
    api_key_secret_ref: SecretKeyRef | None = None
    """vLLM's own `--api-key`, when it has one."""
    handover: HandoverKind = HandoverKind.AUTO
    """What becomes of serving while a step is taken."""
    max_slowdown: int = Field(default=40, ge=1, le=90)
    """Percent of its tokens a second that serving may lose while a step is taken beside it; `Share` only."""
    pause: PauseMode = PauseMode.KEEP
    """What becomes of running requests when serving pauses for a step; `Sleep` only."""
    drain_timeout_seconds: int = Field(default=30, ge=1, le=3600)
    """How long `pause: Wait` waits for running requests before the job fails."""
    max_pause_seconds: int = Field(default=120, ge=1, le=3600)
    """Longest pause of serving. A step that surely needs longer, by what its parent's step took, is not begun; one
    that takes longer is ended and serving woken."""
    probe: Probe = Probe()
    """How a version is tried before it goes into service."""


class Storage(ResourceModel):
    """Where versions are kept. The vLLM pods must mount the same claim."""

    claim_name: str = Field(min_length=1, max_length=253, json_schema_extra={"pattern": OBJECT_NAME})
    """PersistentVolumeClaim in the same namespace."""
    path: Folder | None = Field(default=None, max_length=512, json_schema_extra={"pattern": FOLDER_PATH})
    """Folder below the volume's root; `<namespace>/<name>` when left out."""


def _kept(field: str) -> list[JsonValue]:
    """CEL: an optional field that can neither change, appear nor vanish."""
    return [
        {
            "rule": f"has(self.{field}) == has(oldSelf.{field})"
            f" && (!has(self.{field}) || self.{field} == oldSelf.{field})",
            "message": f"{field} is immutable",
            "fieldPath": f".{field}",
        }
    ]


class LoraAdapterSpec(ResourceModel):
    """What the adapter is, where it is kept and who serves it."""

    lora_id: str | None = Field(
        default=None, min_length=1, max_length=200, json_schema_extra={"pattern": LORA_ID_PATTERN}
    )
    """The CLaaS identifier, such as `user123/coder-v1`; `<namespace>/<name>` when left out. Immutable."""
    model: BaseModelSpec
    """The base model. Immutable."""
    lora: LoraSpec = LoraSpec()
    """Shape of the adapter. Immutable."""
    engine: EngineName | None = None
    """Where steps are computed; the operator's execution mode when left out."""
    serving: Serving = Field(json_schema_extra={"x-kubernetes-validations": SERVING_RULES})
    """The vLLM servers of the adapter."""
    storage: Storage
    """Where versions are kept. Immutable."""
    trainer: TrainerPod = TrainerPod()
    """How trainer pods are made."""
    training: TrainingConfig = TrainingConfig()
    """Training settings of all jobs, in CLaaS's own names; a job can override each."""


SPEC_RULES: list[JsonValue] = [
    *_kept("loraId"),
    {"rule": "self.model == oldSelf.model", "message": "model is immutable", "fieldPath": ".model"},
    {"rule": "self.lora == oldSelf.lora", "message": "lora is immutable", "fieldPath": ".lora"},
    {"rule": "self.storage == oldSelf.storage", "message": "storage is immutable", "fieldPath": ".storage"},
]


class ReplicaState(StrEnum):
    """State of one vLLM pod with respect to the adapter."""

    SERVING = "Serving"
    """It serves the version that should be in service."""
    LOADING = "Loading"
    """It does not serve it yet."""
    ASLEEP = "Asleep"
    """It is paused."""
    UNREACHABLE = "Unreachable"
    """It does not answer."""
    NOT_READY = "NotReady"
    """The pod is not ready."""
    LOAD_FAILED = "LoadFailed"
    """vLLM refused the version."""
    NOT_APPLIED = "NotApplied"
    """vLLM has the version loaded and answers with the base in its place."""


class Replica(ResourceModel):
    """One vLLM pod."""

    pod: str
    """Its name."""
    version: int | None = None
    """The version it serves under the served name."""
    state: ReplicaState
    """What it is doing."""
    message: str | None = None
    """Why, when it is not serving."""


class AdapterVersion(ResourceModel):
    """One version of the adapter on the volume."""

    number: int = Field(ge=0)
    """Its number; the initial version is 0."""
    path: str
    """Its folder, below the volume's root."""
    digest: str
    """sha256 over the digests of all its files."""
    created: datetime
    """When it was published."""
    job: str | None = None
    """The DistillJob that made it."""
    job_uid: str | None = None
    """That job's UID."""
    parent: int | None = None
    """The version it was trained from."""
    metrics: dict[str, float] = {}
    """Training metrics of its step."""
    verdict: VersionVerdict = VersionVerdict.UNTRIED
    """What serving said of it. A rejected version is never served or trained from."""


class LoraAdapterStatus(ResourceModel):
    """What is in service and how it came to be."""

    observed_generation: int | None = None
    """The generation of the spec that this status is about."""
    conditions: list[Condition] = Field(
        default=[],
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    """Ready, Reconciling, Stalled, Served and CompanionReady."""
    lora_id: str | None = None
    """The CLaaS identifier in use."""
    served_name: str | None = None
    """The model name clients ask for."""
    served_version: int | None = None
    """The version that every ready vLLM pod serves."""
    latest_version: int | None = None
    """The newest version that was published."""
    versions: list[AdapterVersion] = Field(
        default=[],
        max_length=HISTORY_LIMIT,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["number"]},
    )
    """The newest versions, oldest first."""
    replicas: list[Replica] = Field(
        default=[],
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["pod"]},
    )
    """The vLLM pods."""
    ready_replicas: str | None = None
    """How many pods serve the version, of how many, for people."""
    handover: HandoverKind | None = None
    """What becomes of serving at the next step, never Auto; absent while nothing would do, and jobs wait."""
    handover_message: str | None = None
    """Why it is this one, or what to change."""
    current_job: str | None = None
    """The DistillJob that is taking a step on this adapter."""


class LoraAdapter(ResourceModel):
    """A LoRA adapter that keeps learning: apply DistillJobs that carry feedback, and each puts a new version into
    service."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": f"has(self.spec.serving.servedName) || size(self.metadata.name) <= {SERVED_NAME_LIMIT}",
                    "message": f"metadata.name is the served name and may have {SERVED_NAME_LIMIT} characters: set"
                    " spec.serving.servedName, or choose a shorter name",
                }
            ]
        }
    )
    spec: LoraAdapterSpec = Field(json_schema_extra={"x-kubernetes-validations": SPEC_RULES})
    """What the adapter is, where it is kept and who serves it."""
    status: LoraAdapterStatus = LoraAdapterStatus()
    """What is in service and how it came to be. Written by the operator."""
