"""Pods and their containers, as far as they are read."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field, JsonValue

from claas_crds.base import ResourceModel
from claas_kube.objects.meta import ObjectMeta

CONTAINER_NOT_LOCATED = "ContainerStatusUnknown"
"""The kubelet's reason for the end of a container whose state it has lost."""


class Terminated(ResourceModel):
    """core/v1 ContainerStateTerminated."""

    exit_code: int
    message: str = ""
    reason: str = ""
    finished_at: datetime | None = None


class Running(ResourceModel):
    """core/v1 ContainerStateRunning; nothing of it is read."""


class Waiting(ResourceModel):
    """core/v1 ContainerStateWaiting."""

    reason: str = ""
    message: str = ""


class ContainerState(ResourceModel):
    """core/v1 ContainerState."""

    running: Running | None = None
    terminated: Terminated | None = None
    waiting: Waiting | None = None


class ContainerStatus(ResourceModel):
    """core/v1 ContainerStatus."""

    name: str
    state: ContainerState = ContainerState()
    last_state: ContainerState = ContainerState()
    restart_count: int = 0


class PodCondition(ResourceModel):
    """core/v1 PodCondition."""

    type: str
    status: str
    reason: str = ""
    message: str = ""


class ClaimReference(ResourceModel):
    """core/v1 PersistentVolumeClaimVolumeSource."""

    claim_name: str


class PodVolume(ResourceModel):
    """core/v1 Volume, if it is a claim."""

    name: str
    persistent_volume_claim: ClaimReference | None = None


class ContainerMount(ResourceModel):
    """core/v1 VolumeMount."""

    name: str
    mount_path: str
    sub_path: str = ""
    sub_path_expr: str = ""


class FieldReference(ResourceModel):
    """core/v1 ObjectFieldSelector."""

    field_path: str


class VariableSource(ResourceModel):
    """core/v1 EnvVarSource, if it is a field of the pod; any other has no `field_ref`."""

    field_ref: FieldReference | None = None


class VariablesSource(ResourceModel):
    """core/v1 EnvFromSource: a ConfigMap or Secret whose keys become variables."""


class ContainerVariable(ResourceModel):
    """core/v1 EnvVar."""

    name: str
    value: str = ""
    value_from: VariableSource | None = None


class ClaimRequest(ResourceModel):
    """core/v1 ResourceClaim: the claim of its pod that a container uses."""

    name: str


class ContainerResources(ResourceModel):
    """core/v1 ResourceRequirements."""

    limits: dict[str, str | int] = {}
    requests: dict[str, str | int] = {}
    claims: list[ClaimRequest] = []


class Container(ResourceModel):
    """core/v1 Container, as far as it is read here."""

    name: str
    image: str = ""
    command: list[str] = []
    args: list[str] = []
    env: list[ContainerVariable] = []
    env_from: list[VariablesSource] = []
    resources: ContainerResources = ContainerResources()
    volume_mounts: list[ContainerMount] = []
    liveness_probe: dict[str, JsonValue] | None = None


class PodResourceClaim(ResourceModel):
    """core/v1 PodResourceClaim: a claim by its name, or one that is made for each pod."""

    name: str
    resource_claim_name: str | None = None


class PodSpec(ResourceModel):
    """core/v1 PodSpec, as far as it is read here."""

    volumes: list[PodVolume] = []
    containers: list[Container] = []
    resource_claims: list[PodResourceClaim] = []
    runtime_class_name: str | None = None
    node_name: str = ""
    service_account_name: str = ""

    def container(self, name: str | None) -> Container | None:
        """The container with that name, or the first one without a name; None if there is none."""
        return next((each for each in self.containers if name is None or each.name == name), None)


class PodStatus(ResourceModel):
    """core/v1 PodStatus, as far as it is read here."""

    phase: str = "Pending"
    pod_ip: str = Field(default="", alias="podIP")
    conditions: list[PodCondition] = []
    init_container_statuses: list[ContainerStatus] = []
    """States of init containers, including native sidecars."""
    container_statuses: list[ContainerStatus] = []
    reason: str = ""
    message: str = ""


class Pod(ResourceModel):
    """core/v1 Pod."""

    metadata: ObjectMeta
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    @property
    def ready(self) -> bool:
        """Whether it is running, ready and not terminating."""
        return self.metadata.deletion_timestamp is None and any(
            condition.type == "Ready" and condition.status == "True" for condition in self.status.conditions
        )

    @property
    def ended(self) -> bool:
        """Whether all its containers have ended for good."""
        return self.status.phase in ("Succeeded", "Failed")

    def state_of(self, container: str) -> ContainerState:
        """State of the container with that name; empty until the node has reported one."""
        statuses = self.status.container_statuses
        return next((status.state for status in statuses if status.name == container), ContainerState())

    def may_run(self, container: str) -> bool:
        """Whether a process of that container may still run, because neither it nor its pod has certainly ended."""
        ended = self.state_of(container).terminated
        return not self.ended and (ended is None or ended.reason == CONTAINER_NOT_LOCATED)


class PodTemplate(ResourceModel):
    """core/v1 PodTemplateSpec, as far as it is read here."""

    spec: PodSpec = PodSpec()
