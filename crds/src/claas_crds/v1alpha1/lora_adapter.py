"""LoraAdapter: a LoRA adapter that keeps learning, the volume that stores it and the vLLM that serves it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, ConfigDict, Field, JsonValue

from claas_crds.base import OBJECT_NAME, ResourceModel
from claas_crds.v1alpha1.conditions import Condition
from claas_crds.v1alpha1.engine import EngineName, EngineSpec
from claas_crds.v1alpha1.feedback import FeedbackGathering, RolloutRecording
from claas_crds.v1alpha1.lora import LoraSpec
from claas_crds.v1alpha1.serving import SERVED_NAME_LIMIT, HandoverKind, Serving
from claas_crds.v1alpha1.tls import SERVING_RULES
from claas_crds.v1alpha1.trainer_pod import SecretKeyRef, TrainerPod
from claas_crds.v1alpha1.training import LORA_ID_PATTERN, TrainingConfig
from claas_crds.v1alpha1.version import HISTORY_LIMIT, AdapterVersion

KIND = "LoraAdapter"

PLURAL = "loraadapters"

_NOT_IN_PATHS = r"/\x00-\x1f\x7f"

_SEGMENT = rf"[^{_NOT_IN_PATHS}]*[^.{_NOT_IN_PATHS}][^{_NOT_IN_PATHS}]*"

RELATIVE_PATH = rf"^{_SEGMENT}(/{_SEGMENT})*$"
"""Pattern for a path below a volume's root, in any script. No segment consists of dots alone, so the path can't leave
the volume."""


def _without_end(path: str) -> str:
    return path.rstrip("/")


Folder: TypeAlias = Annotated[str, AfterValidator(_without_end)]
"""A folder below a volume's root; a trailing slash is ignored."""

FOLDER_PATH = rf"{RELATIVE_PATH[:-1]}/?$"


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
    """Branch, tag or commit; pin a commit to make steps repeatable."""
    token_secret_ref: SecretKeyRef | None = None
    """Token for gated models."""
    cache_claim_name: str | None = Field(default=None, max_length=253, json_schema_extra={"pattern": OBJECT_NAME})
    """PersistentVolumeClaim that keeps downloads; without one every step downloads the model again."""


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

    @property
    def public_name(self) -> str:
        """What others call it who do not know this cluster: its repository on the hub, or else `name`."""
        return self.source.hub.repository if self.source.hub is not None else self.name


class Storage(ResourceModel):
    """Where versions are kept. The vLLM pods must mount the same claim."""

    claim_name: str = Field(min_length=1, max_length=253, json_schema_extra={"pattern": OBJECT_NAME})
    """PersistentVolumeClaim in the same namespace."""
    path: Folder | None = Field(default=None, max_length=512, json_schema_extra={"pattern": FOLDER_PATH})
    """Folder below the volume's root; `<namespace>/<name>` when left out."""


def _kept(field: str) -> list[JsonValue]:
    """CEL rule for an immutable optional field: it can't change, appear or vanish."""
    return [
        {
            "rule": f"has(self.{field}) == has(oldSelf.{field})"
            f" && (!has(self.{field}) || self.{field} == oldSelf.{field})",
            "message": f"{field} is immutable",
            "fieldPath": f".{field}",
        }
    ]


class LoraAdapterSpec(ResourceModel):
    """What the adapter is, where it is stored and which servers serve it."""

    lora_id: str | None = Field(
        default=None, min_length=1, max_length=200, json_schema_extra={"pattern": LORA_ID_PATTERN}
    )
    """The CLaaS identifier, such as `user123/coder-v1`; `<namespace>/<name>` when left out. Immutable."""
    model: BaseModelSpec
    """The base model. Immutable."""
    lora: LoraSpec = LoraSpec()
    """Shape of the adapter. Immutable."""
    engine: EngineSpec | None = None
    """Where steps are computed: exactly one engine with its settings, such as `local: {}`. Default: the operator's
    execution mode. An adapter that has versions stays with their engine. A name alone, as in `engine: local`, is
    deprecated and still accepted."""
    serving: Serving = Field(json_schema_extra={"x-kubernetes-validations": SERVING_RULES})
    """The servers of the adapter: vLLM, the inference proxy of the Tinker service, or a vLLM on Modal."""
    storage: Storage
    """Where versions are kept. Immutable."""
    trainer: TrainerPod = TrainerPod()
    """How trainer pods are made."""
    training: TrainingConfig = TrainingConfig()
    """Training settings of all jobs, under CLaaS's names; a job can override each one."""
    rollouts: RolloutRecording = RolloutRecording()
    """What the gateway records of its answers."""
    feedback: FeedbackGathering = FeedbackGathering()
    """How the gateway makes DistillJobs of feedback."""


SPEC_RULES: list[JsonValue] = [
    *_kept("loraId"),
    {"rule": "self.model == oldSelf.model", "message": "model is immutable", "fieldPath": ".model"},
    {"rule": "self.lora == oldSelf.lora", "message": "lora is immutable", "fieldPath": ".lora"},
    {"rule": "self.storage == oldSelf.storage", "message": "storage is immutable", "fieldPath": ".storage"},
    {
        "rule": "has(self.serving.tinkerProxy) == has(oldSelf.serving.tinkerProxy)"
        " && has(self.serving.modalApp) == has(oldSelf.serving.modalApp)",
        "message": "serving can't change between deploymentRef, tinkerProxy and modalApp: make the adapter anew, its"
        " versions stay",
        "fieldPath": ".serving",
    },
    # CEL can't look into `engine`; its other refusals are the operator's.
    {
        "rule": "!has(self.serving.tinkerProxy) || self.lora.alpha == 64",
        "message": "the Tinker service chooses alpha itself: leave it out with serving.tinkerProxy",
        "fieldPath": ".lora.alpha",
    },
    {
        "rule": "!has(self.serving.tinkerProxy) || self.training.teacher == 'frozen'",
        "message": "with serving.tinkerProxy the teacher is the base model: frozen",
        "fieldPath": ".training.teacher",
    },
    {
        "rule": "!has(self.serving.tinkerProxy) || self.training.support != 'full'",
        "message": "with serving.tinkerProxy the support can be top_k_tail or top_k_renormalised",
        "fieldPath": ".training.support",
    },
    {
        "rule": "!has(self.serving.tinkerProxy) || !has(self.training.teacher_top_k)"
        " || self.training.teacher_top_k <= 20",
        "message": "with serving.tinkerProxy teacher_top_k can be 20 at most, as many as the service tells",
        "fieldPath": ".training.teacher_top_k",
    },
]


class ReplicaState(StrEnum):
    """State of the adapter in one vLLM pod."""

    SERVING = "Serving"
    """It serves the version that should be in service."""
    LOADING = "Loading"
    """It does not serve that version yet."""
    ASLEEP = "Asleep"
    """It is paused."""
    UNREACHABLE = "Unreachable"
    """It does not answer."""
    NOT_READY = "NotReady"
    """The pod is not ready."""
    LOAD_FAILED = "LoadFailed"
    """vLLM refused the version."""
    NOT_APPLIED = "NotApplied"
    """vLLM has loaded the version but answers with the base model in its place."""


class Replica(ResourceModel):
    """One vLLM pod, or a vLLM on Modal."""

    pod: str
    """Its name; `modal:<app>` for all containers of an app on Modal."""
    version: int | None = None
    """The version it serves under the served name."""
    state: ReplicaState
    """State of the adapter in this pod."""
    message: str | None = None
    """Why it is not serving, if it is not. Where several containers serve on Modal, that they change one after
    another."""


class LoraAdapterStatus(ResourceModel):
    """The version in service and its history."""

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
    """The version that every ready vLLM pod serves. While pods differ, or none is ready, the last one of which that
    was true."""
    latest_version: int | None = None
    """The head: the version that the next step starts from. Of those that were neither rejected nor trained from a
    rejected one, it is the one that was published last."""
    versions: list[AdapterVersion] = Field(
        default=[],
        max_length=HISTORY_LIMIT,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["number"]},
    )
    """The versions that were published last, oldest first; the head is always among them."""
    replicas: list[Replica] = Field(
        default=[],
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["pod"]},
    )
    """The vLLM pods."""
    ready_replicas: str | None = None
    """Pods that serve the version, out of all pods, for people."""
    serving_url: str | None = None
    """Address of the servers where they are outside the cluster (`serving.modalApp`)."""
    handover: HandoverKind | None = None
    """Hand-over of the next step, never Auto. Absent while none is possible; jobs wait then."""
    handover_message: str | None = None
    """Why this hand-over was chosen, or what to change so that one is possible."""
    engine: EngineName | None = None
    """The engine that makes the adapter's versions; absent before the first. An adapter can't change to another."""
    current_job: str | None = None
    """The DistillJob that is taking a step on this adapter."""


PROXIED_NAME_LIMIT = 50
"""Longest name of an adapter with an inference proxy: Services have names of 63 characters, with a suffix of 13."""


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
                },
                {
                    "rule": "!has(self.spec.serving.tinkerProxy) || self.metadata.name.matches('"
                    f"^[a-z]([-a-z0-9]{{0,{PROXIED_NAME_LIMIT - 2}}}[a-z0-9])?$')",
                    "message": "with serving.tinkerProxy a Service is named after metadata.name, which must begin"
                    f" with a letter and may have {PROXIED_NAME_LIMIT} characters: a to z, 0 to 9 and -",
                },
            ]
        }
    )
    spec: LoraAdapterSpec = Field(json_schema_extra={"x-kubernetes-validations": SPEC_RULES})
    """What the adapter is, where it is stored and which servers serve it."""
    status: LoraAdapterStatus = LoraAdapterStatus()
    """The version in service and its history. Written by the operator."""
