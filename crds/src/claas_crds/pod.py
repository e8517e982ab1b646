"""Settings of the trainer's pods: what a GPU cluster needs said about them.

Fields that Kubernetes itself defines are passed through as they are; the API server checks them when the pod is
made.
"""

from __future__ import annotations

from pydantic import ConfigDict, Field

from claas_crds.base import ResourceModel

DNS_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"


class PassThrough(ResourceModel):
    """A Kubernetes object handed on as it is; fields beyond those named here are kept."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})


class SecretKeyRef(ResourceModel):
    """One key of a Secret in the same namespace."""

    name: str = Field(min_length=1, max_length=253)
    """Name of the Secret."""
    key: str = Field(default="token", min_length=1, max_length=253)
    """Key within it."""


class EnvVar(PassThrough):
    """An environment variable (core/v1 EnvVar)."""

    name: str = Field(min_length=1)
    """Its name."""


class Volume(PassThrough):
    """A volume (core/v1 Volume)."""

    name: str = Field(pattern=DNS_LABEL, max_length=63)
    """Its name; names beginning with `claas-` are the operator's own."""


class VolumeMount(PassThrough):
    """Where a volume appears in the trainer (core/v1 VolumeMount)."""

    name: str = Field(pattern=DNS_LABEL, max_length=63)
    """The volume's name."""
    mount_path: str = Field(min_length=1)
    """The path in the container."""


class Toleration(PassThrough):
    """A toleration (core/v1 Toleration)."""


class ResourceClaimReference(ResourceModel):
    """A ResourceClaim (resource.k8s.io/v1) in the same namespace, named by the vLLM pod as well, so that both see
    the same GPU."""

    name: str = Field(pattern=DNS_LABEL, max_length=63)
    """Name of the claim within the pod."""
    resource_claim_name: str = Field(min_length=1, max_length=253)
    """Name of the ResourceClaim object."""
    request: str | None = None
    """One request of the claim; all of them when left out."""


class ResourceRequirements(ResourceModel):
    """Compute resources of the trainer (core/v1 ResourceRequirements)."""

    limits: dict[str, str | int] = {}
    """Most it may use, by resource name."""
    requests: dict[str, str | int] = {}
    """What the scheduler sets aside, by resource name."""


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
    resource_claims: list[ResourceClaimReference] = []
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
    """User id of the trainer; never root. The image's own (65532) when left out."""
    fs_group: int | None = Field(default=65532, ge=1)
    """Group that owns the adapter volume's files."""
    env: list[EnvVar] = []
    """Further environment variables."""
    volumes: list[Volume] = Field(
        default=[],
        max_length=32,
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "self.all(volume, !volume.name.startsWith('claas-'))",
                    "message": "names beginning with claas- are the operator's own",
                }
            ]
        },
    )
    """Further volumes, such as a compile cache."""
    volume_mounts: list[VolumeMount] = []
    """Where they appear."""
    annotations: dict[str, str] = {}
    """Annotations of the pod."""
    labels: dict[str, str] = {}
    """Further labels of the pod."""
