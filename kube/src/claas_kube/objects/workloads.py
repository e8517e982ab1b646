"""Deployments, claims, batch Jobs, Events and Leases, as far as they are read."""

from __future__ import annotations

from datetime import datetime

from claas_crds.base import ResourceModel
from claas_kube.objects.meta import LabelSelector, ObjectMeta
from claas_kube.objects.pods import PodCondition, PodTemplate


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


class ClaimSpec(ResourceModel):
    """core/v1 PersistentVolumeClaimSpec, as far as it is read here."""

    access_modes: list[str] = []


class Claim(ResourceModel):
    """core/v1 PersistentVolumeClaim."""

    metadata: ObjectMeta
    spec: ClaimSpec = ClaimSpec()


class BatchJobStatus(ResourceModel):
    """batch/v1 JobStatus, as far as it is read here."""

    conditions: list[PodCondition] = []


class BatchJobSpec(ResourceModel):
    """batch/v1 JobSpec, as far as it is read here."""

    suspend: bool = False
    ttl_seconds_after_finished: int | None = None


class BatchJob(ResourceModel):
    """batch/v1 Job; its outcome is read from its pod, or from its conditions if there is no pod."""

    metadata: ObjectMeta
    spec: BatchJobSpec = BatchJobSpec()
    status: BatchJobStatus = BatchJobStatus()

    @property
    def retired(self) -> bool:
        """Whether it has a time to live after its end."""
        return self.spec.ttl_seconds_after_finished is not None

    @property
    def ended_because(self) -> str:
        """Why it has ended, from its conditions; empty while it has not."""
        for condition in self.status.conditions:
            if condition.type in ("Failed", "Complete") and condition.status == "True":
                return condition.message or condition.reason or "ended"
        return ""


class EventSeries(ResourceModel):
    """core/v1 EventSeries, as far as it is read here."""

    last_observed_time: datetime | None = None


class Event(ResourceModel):
    """core/v1 Event, as far as it is read here; which of its times is set depends on its recorder."""

    metadata: ObjectMeta
    type: str = "Normal"
    reason: str = ""
    message: str = ""
    event_time: datetime | None = None
    last_timestamp: datetime | None = None
    series: EventSeries | None = None

    @property
    def last_seen(self) -> float:
        """When it last happened, in whole seconds since 1970, because some recorders have no fractions."""
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
