"""Settings of the trainer's pods: what a GPU cluster needs said about them.

Fields that Kubernetes itself defines are passed through as they are; the API server checks them when the pod is
made.
"""

from __future__ import annotations

from decimal import Decimal
from enum import StrEnum
from typing import Annotated, TypeAlias

from pydantic import BeforeValidator, ConfigDict, Field, JsonValue, WithJsonSchema

from claas_crds.base import OBJECT_NAME, ResourceModel

DNS_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"


_OWN_PATHS = "^/+(tmp|dev(/+termination-log)?|var|var/+lib|(var/+)?run|(var/+lib|var/+run|run)/+claas(/.*)?)?/*$"
"""Where the operator mounts something, above that, and below what may be read-only. /var/run may lead to /run."""


class PassThrough(ResourceModel):
    """A Kubernetes object handed on as it is; fields beyond those named here are kept."""

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
    """Its value, a string: numbers and booleans stand in quotes."""


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
    """A ResourceClaim (resource.k8s.io/v1) in the same namespace, named by the vLLM pod as well, so that both see
    the same GPU."""

    name: str = Field(pattern=DNS_LABEL, max_length=63)
    """Name of the claim within the pod."""
    resource_claim_name: str = Field(min_length=1, max_length=253, json_schema_extra={"pattern": OBJECT_NAME})
    """Name of the ResourceClaim object."""
    request: str | None = None
    """One request of the claim; all of them when left out."""


_QUANTITY = r"^\+?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$"


def _quantity_text(value: object) -> object:
    """A quantity that was written as a YAML number, as the text that stands for it."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return format(Decimal(repr(value)).normalize(), "f")
    return value


Quantity: TypeAlias = Annotated[
    str,
    BeforeValidator(_quantity_text),
    WithJsonSchema(
        {
            # Pods take integers, fractions and strings. `x-kubernetes-int-or-string` refuses fractions, and no other
            # type has both; without a type a pattern binds strings only and a minimum numbers only.
            "x-kubernetes-preserve-unknown-fields": True,
            "pattern": _QUANTITY,
            "minimum": 0,
            "maxItems": 0,
            "maxProperties": 0,
            "not": {"enum": [True, False, [], {}]},
        }
    ),
]
"""A Kubernetes quantity, such as `4Gi`, `500m`, 2 or 0.5; inside it is always text."""


class ResourceRequirements(ResourceModel):
    """Compute resources of the trainer (core/v1 ResourceRequirements)."""

    limits: dict[str, Quantity] = {}
    """Most it may use, by resource name."""
    requests: dict[str, Quantity] = {}
    """What the scheduler sets aside, by resource name."""


class Identity(StrEnum):
    """Which user and groups trainer pods run as."""

    FIXED = "Fixed"
    """Those that the spec names, and 65532 for those that it does not."""
    ASSIGNED = "Assigned"
    """A user and a group that the spec names; `fsGroup`, and the rest, are left to the cluster."""


def _unique_by(key: str) -> dict[str, JsonValue]:
    """Items of a list that have a key of their own, as core/v1 has them: none stands there twice."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}


def _rule(rule: str, message: str) -> dict[str, JsonValue]:
    """A CEL rule of one field."""
    return {"x-kubernetes-validations": [{"rule": rule, "message": message}]}


class TrainerPod(ResourceModel):
    """How trainer pods are made."""

    image: str | None = None
    """The trainer's image; the operator's default when left out."""
    image_pull_policy: str | None = Field(
        default=None, json_schema_extra={"enum": ["Always", "IfNotPresent", "Never"]}
    )
    """When the image is pulled (core/v1 meaning)."""
    image_pull_secrets: list[dict[str, str]] = []
    """Secrets for pulling the image (core/v1 LocalObjectReference)."""
    resources: ResourceRequirements = ResourceRequirements()
    """CPU, memory and devices. Leave GPUs out when a ResourceClaim or a runtimeClass brings them."""
    resource_claims: list[ResourceClaimReference] = Field(default=[], json_schema_extra=_unique_by("name"))
    """ResourceClaims shared with the vLLM pod."""
    node_selector: dict[str, str] = {}
    """Labels the node must have."""
    tolerations: list[Toleration] = []
    """Taints the trainer tolerates."""
    same_node_as_serving: bool = False
    """Run on the node of the vLLM pod (pod affinity): needed for a shared GPU without a ResourceClaim, and for a
    ReadWriteOnce volume."""
    runtime_class_name: str | None = None
    """RuntimeClass, such as `nvidia`."""
    run_as_user: int | None = Field(default=None, ge=1)
    """User id of the trainer; never root. Left out: by `identity`."""
    run_as_group: int | None = Field(default=None, ge=0)
    """Group id of the trainer. Left out: by `identity`."""
    fs_group: int | None = Field(default=65532, ge=1)
    """Group that owns the adapter volume's files; not set when `identity` is `Assigned`."""
    identity: Identity | None = None
    """Which user and groups the pod runs as. `Fixed`: those of the fields above, without them user 65532 and a group
    of the user's number. `Assigned`: no `fsGroup`, and no user and group that the fields above do not name, so that
    the cluster assigns them, as OpenShift does.
    The operator's own setting (the chart's `trainer.identity`) when left out."""
    env: list[EnvVar] = Field(default=[], json_schema_extra=_unique_by("name"))
    """Further environment variables."""
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
    """Further volumes, such as a compile cache. One may be a claim that the operator mounts too: the pod gets one
    volume for it."""
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
    """Where they appear."""
    annotations: dict[str, str] = {}
    """Annotations of the pod and of its batch Job."""
    labels: dict[str, str] = {}
    """Further labels of the pod and of its batch Job, such as a Kueue queue's name."""
