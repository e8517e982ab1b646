"""The parts of Kubernetes' own objects that the operator reads, as typed values."""

from __future__ import annotations

from datetime import datetime
from typing import TypeAlias

from pydantic import Field, JsonValue

from claas_crds.base import ResourceModel
from claas_crds.distill_job import DistillJobSpec, DistillJobStatus
from claas_crds.lora_adapter import LoraAdapterSpec, LoraAdapterStatus

Manifest: TypeAlias = dict[str, JsonValue]
"""A Kubernetes object on its way to or from the API server."""
CONTAINER_NOT_LOCATED = "ContainerStatusUnknown"
"""The reason that a kubelet gives as the end of a container which it has lost sight of."""


class OwnerReference(ResourceModel):
    """metav1.OwnerReference."""

    kind: str
    name: str
    uid: str


class ObjectMeta(ResourceModel):
    """metav1.ObjectMeta, as far as it is read here."""

    name: str
    namespace: str = ""
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    owner_references: list[OwnerReference] = []


class ManagedFields(ResourceModel):
    """metav1.ManagedFieldsEntry, as far as it is read here."""

    time: datetime | None = None


class SecretMeta(ObjectMeta):
    """metav1.ObjectMeta of a Secret."""

    managed_fields: list[ManagedFields] = []

    @property
    def changed(self) -> datetime | None:
        """When anybody last wrote it."""
        times = [entry.time for entry in self.managed_fields] + [self.creation_timestamp]
        return max((time for time in times if time is not None), default=None)


class AdapterObject(ResourceModel):
    """A LoraAdapter as it lies in the cluster."""

    metadata: ObjectMeta
    spec: LoraAdapterSpec
    status: LoraAdapterStatus = LoraAdapterStatus()

    @property
    def served_name(self) -> str:
        """The model name clients ask for."""
        return self.spec.serving.served_name or self.metadata.name

    @property
    def lora_id(self) -> str:
        """The CLaaS identifier."""
        return self.spec.lora_id or f"{self.metadata.namespace}/{self.metadata.name}"

    @property
    def storage_path(self) -> str:
        """The adapter's folder below the volume's root."""
        return self.spec.storage.path or f"{self.metadata.namespace}/{self.metadata.name}"


class JobObject(ResourceModel):
    """A DistillJob as it lies in the cluster."""

    metadata: ObjectMeta
    spec: DistillJobSpec
    status: DistillJobStatus = DistillJobStatus()


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
        """The container of that name, the first one when no name is given; None when there is none."""
        return next((each for each in self.containers if name is None or each.name == name), None)


class PodStatus(ResourceModel):
    """core/v1 PodStatus, as far as it is read here."""

    phase: str = "Pending"
    pod_ip: str = Field(default="", alias="podIP")
    conditions: list[PodCondition] = []
    init_container_statuses: list[ContainerStatus] = []
    """Of init containers, and of sidecars that are declared as such."""
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
        """Whether it is running, ready and not on its way out."""
        return self.metadata.deletion_timestamp is None and any(
            condition.type == "Ready" and condition.status == "True" for condition in self.status.conditions
        )

    @property
    def ended(self) -> bool:
        """Whether all its containers have ended for good."""
        return self.status.phase in ("Succeeded", "Failed")

    def state_of(self, container: str) -> ContainerState:
        """The state of the container of that name; none of its states is set while the node has not told any."""
        statuses = self.status.container_statuses
        return next((status.state for status in statuses if status.name == container), ContainerState())

    def may_run(self, container: str) -> bool:
        """Whether a process of that container may still run: neither it nor its pod has surely ended."""
        ended = self.state_of(container).terminated
        return not self.ended and (ended is None or ended.reason == CONTAINER_NOT_LOCATED)


class LabelRequirement(ResourceModel):
    """metav1.LabelSelectorRequirement."""

    key: str
    operator: str
    values: list[str] = []

    @property
    def text(self) -> str:
        """The requirement as a label selector's query has it."""
        match self.operator:
            case "Exists":
                return self.key
            case "DoesNotExist":
                return f"!{self.key}"
            case _:
                return f"{self.key} {self.operator.lower()} ({','.join(self.values)})"


class LabelSelector(ResourceModel):
    """metav1.LabelSelector."""

    match_labels: dict[str, str] = {}
    match_expressions: list[LabelRequirement] = []

    @property
    def text(self) -> str:
        """The selector as a list request's query has it."""
        labels = [f"{key}={value}" for key, value in sorted(self.match_labels.items())]
        return ",".join([*labels, *(requirement.text for requirement in self.match_expressions)])


class PodTemplate(ResourceModel):
    """core/v1 PodTemplateSpec, as far as it is read here."""

    spec: PodSpec = PodSpec()


class DeploymentSpec(ResourceModel):
    """apps/v1 DeploymentSpec, as far as it is read here."""

    replicas: int = 1
    selector: LabelSelector = LabelSelector()
    template: PodTemplate = PodTemplate()


class DeploymentStatus(ResourceModel):
    """apps/v1 DeploymentStatus, as far as it is read here."""

    observed_generation: int | None = None
    replicas: int = 0
    updated_replicas: int = 0
    conditions: list[PodCondition] = []


class Deployment(ResourceModel):
    """apps/v1 Deployment."""

    metadata: ObjectMeta
    spec: DeploymentSpec = DeploymentSpec()
    status: DeploymentStatus = DeploymentStatus()


class BatchJobStatus(ResourceModel):
    """batch/v1 JobStatus, as far as it is read here."""

    conditions: list[PodCondition] = []


class BatchJobSpec(ResourceModel):
    """batch/v1 JobSpec, as far as it is read here."""

    suspend: bool = False
    ttl_seconds_after_finished: int | None = None


class BatchJob(ResourceModel):
    """batch/v1 Job; what became of it is read from its pod, and from its conditions when there is none."""

    metadata: ObjectMeta
    spec: BatchJobSpec = BatchJobSpec()
    status: BatchJobStatus = BatchJobStatus()

    @property
    def retired(self) -> bool:
        """Whether Kubernetes removes it some time after its end."""
        return self.spec.ttl_seconds_after_finished is not None

    @property
    def ended_because(self) -> str:
        """Why it has ended, by its own conditions; empty while it has not."""
        for condition in self.status.conditions:
            if condition.type in ("Failed", "Complete") and condition.status == "True":
                return condition.message or condition.reason or "ended"
        return ""


class EventSeries(ResourceModel):
    """core/v1 EventSeries, as far as it is read here."""

    last_observed_time: datetime | None = None


class Event(ResourceModel):
    """core/v1 Event, as far as it is read here; which of its times is set depends on who recorded it."""

    metadata: ObjectMeta
    type: str = "Normal"
    reason: str = ""
    message: str = ""
    event_time: datetime | None = None
    last_timestamp: datetime | None = None
    series: EventSeries | None = None

    @property
    def last_seen(self) -> float:
        """When it happened last, in whole seconds since 1970: some recorders tell no fractions."""
        last = self.series.last_observed_time if self.series is not None else None
        times = (last, self.last_timestamp, self.event_time, self.metadata.creation_timestamp)
        return max((float(int(each.timestamp())) for each in times if each is not None), default=0.0)


class LeaseSpec(ResourceModel):
    """coordination.k8s.io/v1 LeaseSpec."""

    holder_identity: str | None = None


class Lease(ResourceModel):
    """coordination.k8s.io/v1 Lease."""

    metadata: ObjectMeta
    spec: LeaseSpec = LeaseSpec()
