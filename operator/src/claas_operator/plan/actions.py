"""What a plan is made of. Each is data; `apply` carries it out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from claas_contract.input import VllmPod
from claas_contract.jobs import JobIdentity
from claas_operator.plan.serving_lease import Grant, ServedName, ServedRecord, ServingLease
from claas_operator.plan.world import ObjectReference, ServerPod


@dataclass(frozen=True)
class ApplyCompanion:
    """Bring the companion's ConfigMap in the namespace to what this release has."""


@dataclass(frozen=True)
class CreateInit:
    """Make the pod that makes or finds the initial version."""

    name: str


@dataclass(frozen=True)
class DeleteAttempt:
    """End an attempt: its pod with a short grace, its batch Job and its input."""

    name: str
    uid: str | None
    """UID of its batch Job; None when there is none."""
    pod: ObjectReference | None
    grace_seconds: int
    why: str


@dataclass(frozen=True)
class RetireAttempt:
    """An attempt is accounted for: delete its input and samples, and let Kubernetes remove its batch Job later.

    Nothing removes a batch Job before that: its pod holds the result, however long the operator was away.
    """

    name: str
    keep_seconds: int
    """How long after its end the batch Job stays, and with it the trainer's log."""


@dataclass(frozen=True)
class PutInService:
    """Make one vLLM pod serve a version."""

    pod: ServerPod
    version: int
    path: str
    """The version's folder as that pod sees it."""


@dataclass(frozen=True)
class VerifyServed:
    """See that the version in service is applied in one vLLM pod, and load it again where it is not."""

    pod: ServerPod
    version: int


@dataclass(frozen=True)
class TakeOutOfService:
    """Make one vLLM pod forget a served name whose adapter is gone."""

    url: str
    served_name: str
    record: ServedRecord


@dataclass(frozen=True)
class WriteServedName:
    """Write down that a Deployment's pods will serve a name for us, before they are told.

    When it changed since it was observed, nothing else of the plan is done: the next pass decides again.
    """

    served: ServedName


@dataclass(frozen=True)
class ForgetServedName:
    """Delete the record of a served name that no pod serves any more."""

    served: ServedName


@dataclass(frozen=True)
class WriteLease:
    """Write the lease as it should be: granted, released, or with other records.

    When it changed since it was observed, nothing else of the plan is done: the next pass decides again.
    """

    lease: ServingLease


@dataclass(frozen=True)
class DeleteLease:
    """Delete the lease of a Deployment that is gone."""

    lease: ServingLease


@dataclass(frozen=True)
class CreateAttempt:
    """Make the input and the batch Job of the attempt that the grant is for."""

    name: str
    grant: Grant
    parent: int


@dataclass(frozen=True)
class CreateRecovery:
    """Make the pod that looks on the volume for a version of a job."""

    name: str
    job: JobIdentity


@dataclass(frozen=True)
class WakePods:
    """Wake pods that a step left asleep."""

    lease: ServingLease
    pods: tuple[VllmPod, ...]


@dataclass(frozen=True)
class KillTrainer:
    """End a trainer pod with no more grace than its node needs to report that it is gone."""

    pod: ObjectReference


@dataclass(frozen=True)
class DeleteJob:
    """Delete the DistillJob itself: its time to live is over."""


Action: TypeAlias = (
    ApplyCompanion
    | CreateInit
    | DeleteAttempt
    | RetireAttempt
    | PutInService
    | VerifyServed
    | TakeOutOfService
    | WriteServedName
    | ForgetServedName
    | WriteLease
    | DeleteLease
    | CreateAttempt
    | CreateRecovery
    | WakePods
    | KillTrainer
    | DeleteJob
)


@dataclass(frozen=True)
class Note:
    """An Event to record about the object, in the passive voice of the system."""

    reason: str
    message: str
    warning: bool = False
