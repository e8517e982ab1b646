"""Where training steps are computed: one engine, with its own settings."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from pydantic import ConfigDict, Field, JsonValue, model_validator

from claas_crds.base import OBJECT_NAME, ResourceModel
from claas_crds.v1alpha1.trainer_pod import SecretKeyRef


class EngineName(StrEnum):
    """An engine's name: its key in `spec.engine`, and the operator's execution mode."""

    LOCAL = "local"
    """PyTorch in the trainer pod, on a GPU or a CPU."""
    TINKER = "tinker"
    """The Tinker service, which trains and keeps the weights."""
    MODAL = "modal"
    """A GPU of the Modal platform, rented by the second, which runs the local engine's step."""


class StateKeeping(StrEnum):
    """Where the optimiser state of a version is kept that was trained on Modal."""

    VOLUME = "Volume"
    """On the Modal Volume alone: nothing large travels."""
    PVC = "PVC"
    """In the version's folder as well: training goes on from it though the Modal Volume is lost."""


def _name_or_union(schema: dict[str, JsonValue]) -> None:
    """Take an object with exactly one known member, or an engine's name.

    A type would be clearer and let CEL count the members. With `type: object`, though, the API server (1.34) refuses
    each status write and each server-side apply of an object that was stored with a name, even of unchanged fields.
    Without a type CEL can't be used, so the members are counted by value validations, which bind one kind of value
    each: numbers, booleans and lists are ruled out, strings match a name, objects have one member.
    """
    names = "|".join(EngineName)
    del schema["type"]
    schema.update(
        {
            "x-kubernetes-preserve-unknown-fields": True,
            "pattern": f"^({names})$",
            "minProperties": 1,
            "maxProperties": 1,
            "anyOf": [{"required": [name.value]} for name in EngineName],
            "minItems": 1,
            "maxItems": 0,
            "minimum": 1,
            "maximum": 0,
            "not": {"enum": [True, False]},
        }
    )


class LocalEngineSpec(ResourceModel):
    """PyTorch in the trainer pod, on a GPU or a CPU. It has no settings of its own."""


class TinkerEngineSpec(ResourceModel):
    """The Tinker service, which trains and keeps the weights; no GPU is needed (docs/tinker.md)."""

    api_key_secret_ref: SecretKeyRef = SecretKeyRef(name="claas-tinker", key="api-key")
    """The API key, in a Secret of the same namespace."""
    base_model: str | None = Field(default=None, min_length=1, max_length=200)
    """The service's name of the base model, such as `Qwen/Qwen3-8B`. Default: `model.source.hub.repository`, or else
    `model.name`."""
    base_url: str | None = Field(default=None, max_length=500, json_schema_extra={"pattern": r"^https?://[^\s]+$"})
    """Address of the service, if not the SDK's own."""
    project_id: str | None = Field(default=None, min_length=1, max_length=200)
    """The project that training runs belong to."""
    export: bool = False
    """Also write each version as a PEFT adapter, which a vLLM in the cluster serves. Not needed with
    `serving.tinkerProxy`."""
    step_timeout_seconds: int = Field(default=1800, ge=60, le=86400)
    """Longest time of one attempt at a step, in seconds. One that takes longer is ended and tried again."""
    superseded_checkpoint_ttl_seconds: int = Field(default=2592000, ge=3600, le=315360000)
    """Time that the service keeps the checkpoints of a version that is neither the head nor the head's parent, in
    seconds; nothing is sampled or trained from such a version afterwards. Those two are kept without limit."""


class SecretReference(ResourceModel):
    """A Secret in the same namespace, whose keys have fixed names."""

    name: str = Field(min_length=1, max_length=253, json_schema_extra={"pattern": OBJECT_NAME})
    """Name of the Secret."""


MODAL_NAME = r"^[A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?$"
"""Names of environments, Volumes and servers on Modal."""

MODAL_APP_NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
"""Names of apps on Modal, as far as they can be part of a Kubernetes name."""


class ModalEngineSpec(ResourceModel):
    """A GPU of the Modal platform, rented by the second, which runs the local engine's step (docs/modal.md)."""

    token_secret_ref: SecretReference = SecretReference(name="claas-modal")
    """The token of the Modal workspace, in the keys `token-id` and `token-secret` of a Secret."""
    environment: str | None = Field(
        default=None, min_length=1, max_length=64, json_schema_extra={"pattern": MODAL_NAME}
    )
    """Modal environment of apps and Volume; the workspace's default when left out."""
    app: str = Field(
        default="claas-trainer", min_length=1, max_length=64, json_schema_extra={"pattern": MODAL_APP_NAME}
    )
    """The deployed app that takes the steps. It has one base model."""
    volume: str = Field(
        default="claas-adapters", min_length=1, max_length=64, json_schema_extra={"pattern": MODAL_NAME}
    )
    """The Modal Volume that holds the versions' files for apps; the one that they were deployed with."""
    keep_state: StateKeeping = StateKeeping.VOLUME
    """Where the optimiser state of versions is kept. `Volume`: on the Modal Volume alone, so that nothing large
    travels. `PVC`: in the version's folder on the claim as well, so that training goes on if that Volume is lost."""
    step_timeout_seconds: int = Field(default=1800, ge=60, le=86400)
    """Longest time of one attempt at a step, in seconds, with the time that it waits for the steps of other adapters
    of the app. One that takes longer is ended, its container with it, and tried again."""
    superseded_state_ttl_seconds: int = Field(default=604800, ge=3600, le=315360000)
    """Time that the Modal Volume keeps the files of a version that is neither the head nor the head's parent, in
    seconds. Those two are kept without limit."""


class EngineSpec(ResourceModel):
    """One engine and its settings: exactly one member is set. A name alone is read as that engine without settings;
    release 0.1.0 knew no other form."""

    model_config = ConfigDict(json_schema_extra=_name_or_union)

    local: LocalEngineSpec | None = None
    """PyTorch in the trainer pod, on a GPU or a CPU. It has no settings of its own: `local: {}`."""
    tinker: TinkerEngineSpec | None = None
    """The Tinker service, which trains and keeps the weights; `tinker: {}` takes the key from the Secret
    `claas-tinker`."""
    modal: ModalEngineSpec | None = None
    """A GPU of the Modal platform, rented by the second; `modal: {}` takes the token from the Secret
    `claas-modal`."""

    @model_validator(mode="before")
    @classmethod
    def _of_name(cls, value: object) -> object:
        return {value: {}} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if sum(getattr(self, name) is not None for name in EngineName) != 1:
            raise ValueError(f"exactly one engine must be set; this release has: {', '.join(EngineName)}")
        return self

    @classmethod
    def of(cls, name: EngineName) -> Self:
        """The engine of that name, with its defaults."""
        return cls.model_validate(name.value)

    @property
    def name(self) -> EngineName:
        """The engine that is set."""
        return next(name for name in EngineName if getattr(self, name) is not None)
