"""Settings of the trainer's pods.

Fields that Kubernetes defines are passed through unchanged; the API server checks
them when the pod is created.
"""

from __future__ import annotations

from decimal import Decimal
from enum import StrEnum
from typing import Annotated, TypeAlias

from pydantic import BeforeValidator, ConfigDict, Field, JsonValue, WithJsonSchema

from claas_crds.base import OBJECT_NAME, ResourceModel

DNS_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"


_OWN_PATHS = "^/+(tmp|dev(/+termination-log)?|var|var/+lib|(var/+)?run|(var/+lib|var/+run|run)/+claas(/.*)?)?/*$"
"""Paths that a user's mount must not take: those the operator mounts, their parents, and paths below read-only
mounts. /var/run may be a link to /run."""


class PassThrough(ResourceModel):
    """A Kubernetes object passed on unchanged; fields that are not named here are kept."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})


class SecretKeyRef(ResourceModel):
    """One key of a Secret in the same namespace."""

    name: str = Field(min_length=1, max_length=253, json_schema_extra={"pattern": OBJECT_NAME})
    """Name of the Secret."""
    key: str = Field(
        default="token", min_length=1, max_length=253, json_schema_extra={"pattern": r"^[-._a-zA-Z0-9]+$"}
    )
    """Key within it."""


class EnvVar(PassThrough):
    """An environment variable (core/v1 EnvVar)."""

    name: str = Field(min_length=1, max_length=1024)
    """Its name."""
    value: str | None = None
    """Its value, a string: put numbers and booleans in quotes."""


class Volume(PassThrough):
    """A volume (core/v1 Volume)."""

    name: str = Field(pattern=DNS_LABEL, max_length=63)
    """Its name; names beginning with `claas-` are the operator's own."""


class VolumeMount(PassThrough):
    """Where a volume appears in the trainer (core/v1 VolumeMount)."""

    name: str = Field(pattern=DNS_LABEL, max_length=63)
    """The volume's name."""
    mount_path: str = Field(min_length=1, max_length=512, json_schema_extra={"pattern": "^/[^:]*$"})
    """The path in the container."""


class Toleration(PassThrough):
    """A toleration (core/v1 Toleration)."""


class ResourceClaimReference(ResourceModel):
    """A ResourceClaim (resource.k8s.io/v1) in the same namespace. The vLLM pod names it too, so that both see the
    same GPU."""

    name: str = Field(pattern=DNS_LABEL, max_length=63)
    """Name of the claim within the pod."""
    resource_claim_name: str = Field(min_length=1, max_length=253, json_schema_extra={"pattern": OBJECT_NAME})
    """Name of the ResourceClaim object."""
    request: str | None = None
    """One request of the claim. Default: all of them."""


_QUANTITY = r"^\+?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$"


def _quantity_text(value: object) -> object:
    """Turns a quantity that was written as a YAML number into text; returns any other value as it is."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return format(Decimal(repr(value)).normalize(), "f")
    return value


Quantity: TypeAlias = Annotated[
    str,
    BeforeValidator(_quantity_text),
    WithJsonSchema(
        {
            # Pods accept integers, fractions and strings. `x-kubernetes-int-or-string` refuses fractions, and no type
            # allows all three; without a type the pattern applies to strings only and the minimum to numbers only.
            "x-kubernetes-preserve-unknown-fields": True,
            "pattern": _QUANTITY,
            "minimum": 0,
            "maxItems": 0,
            "maxProperties": 0,
            "not": {"enum": [True, False, [], {}]},
        }
    ),
]
"""A Kubernetes quantity, such as `4Gi`, `500m`, 2 or 0.5; always text in Python."""


class ResourceRequirements(ResourceModel):
    """Compute resources of the trainer (core/v1 ResourceRequirements)."""

    limits: dict[str, Quantity] = {}
    """Upper bounds, by resource name."""
    requests: dict[str, Quantity] = {}
    """Amounts that the scheduler reserves, by resource name."""


class Identity(StrEnum):
    """Which user and groups trainer pods run as."""

    FIXED = "Fixed"
    """The ids that the spec names, and 65532 for those it leaves out."""
    ASSIGNED = "Assigned"
    """The user and group that the spec names, if any; the cluster assigns the others, and `fsGroup`."""


def _unique_by(key: str) -> dict[str, JsonValue]:
    """Schema of a list whose items are unique by this key, as in core/v1."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}


def _rule(rule: str, message: str) -> dict[str, JsonValue]:
    """A CEL rule of one field."""
    return {"x-kubernetes-validations": [{"rule": rule, "message": message}]}


class TrainerPod(ResourceModel):
    """Settings of the trainer's pods."""

    image: str | None = None
    """The trainer's image. Default: the operator's."""
    image_pull_policy: str | None = Field(
        default=None, json_schema_extra={"enum": ["Always", "IfNotPresent", "Never"]}
    )
    """When the image is pulled (core/v1 meaning)."""
    image_pull_secrets: list[dict[str, str]] = []
    """Secrets for pulling the image (core/v1 LocalObjectReference)."""
    resources: ResourceRequirements = ResourceRequirements()
    """CPU, memory and devices. Leave GPUs out when a ResourceClaim or a runtimeClass brings them. Trainers of an
    engine that computes elsewhere get neither devices nor ResourceClaims."""
    resource_claims: list[ResourceClaimReference] = Field(default=[], json_schema_extra=_unique_by("name"))
    """ResourceClaims shared with the vLLM pod."""
    node_selector: dict[str, str] = {}
    """Labels the node must have."""
    tolerations: list[Toleration] = []
    """Taints the trainer tolerates."""
    same_node_as_serving: bool = False
    """Run on the node of the vLLM pod (pod affinity): needed for a shared GPU without a ResourceClaim, and for a
    ReadWriteOnce volume. With an engine that computes elsewhere, preferred and not required."""
    runtime_class_name: str | None = None
    """RuntimeClass, such as `nvidia`."""
    run_as_user: int | None = Field(default=None, ge=1)
    """User id of the trainer; never root. Default: decided by `identity`."""
    run_as_group: int | None = Field(default=None, ge=0)
    """Group id of the trainer. Default: decided by `identity`."""
    fs_group: int | None = Field(default=65532, ge=1)
    """Group that owns the adapter volume's files; not set when `identity` is `Assigned`."""
    identity: Identity | None = None
    """User and groups that the pod runs as. `Fixed`: the ids in the fields above, or else user 65532 and a group with
    the user's number. `Assigned`: the ids in the fields above, if any, and no `fsGroup`; the cluster assigns the
    rest, as OpenShift does. Default: the operator's setting (the chart's `trainer.identity`)."""
    env: list[EnvVar] = Field(default=[], json_schema_extra=_unique_by("name"))
    """Further environment variables; an inference proxy gets them too."""
    volumes: list[Volume] = Field(
        default=[],
        max_length=32,
        json_schema_extra={
            **_unique_by("name"),
            **_rule(
                "self.all(volume, !volume.name.startsWith('claas-'))",
                "names beginning with claas- are the operator's own",
            ),
        },
    )
    """Further volumes, such as a compile cache; an inference proxy gets them too. A claim that the operator mounts
    may be among them; the pod gets one volume for it."""
    volume_mounts: list[VolumeMount] = Field(
        default=[],
        max_length=32,
        json_schema_extra={
            **_unique_by("mountPath"),
            **_rule(
                f"self.all(mount, !mount.mountPath.matches('{_OWN_PATHS}'))",
                "a mountPath there is the operator's own: mount the volume elsewhere",
            ),
        },
    )
    """Mount points of those volumes."""
    annotations: dict[str, str] = {}
    """Annotations of the pod and of its batch Job."""
    labels: dict[str, str] = {}
    """Further labels of the pod and of its batch Job, such as a Kueue queue's name."""
