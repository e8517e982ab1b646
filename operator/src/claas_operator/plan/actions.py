"""The actions of a plan, as data; `apply` carries them out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from claas_contract.input import VllmPod
from claas_contract.jobs import JobIdentity
from claas_operator.plan.modal.pointer import ModalServer, ServedPointer
from claas_operator.plan.serving_lease import Grant, ServedName, ServedRecord, ServingLease
from claas_operator.plan.world import ObjectReference, ServerPod


@dataclass(frozen=True)
class ApplyCompanion:
    """Update the companion's ConfigMap in the namespace to this release."""


@dataclass(frozen=True)
class CreateProxyToken:
    """Choose the control token of the adapter's inference proxy, which has none."""


@dataclass(frozen=True)
class ApplyProxy:
    """Make the Deployment and the Service of the adapter's inference proxy as they should be."""


@dataclass(frozen=True)
class CreateInit:
    """Create the trainer that makes or finds the initial version."""

    name: str


@dataclass(frozen=True)
class DeleteAttempt:
    """End an attempt: delete its pod with a short grace period, its batch Job and its input."""

    name: str
    uid: str | None
    """UID of its batch Job; None if there is none."""
    pod: ObjectReference | None
    grace_seconds: int
    why: str


@dataclass(frozen=True)
class RetireAttempt:
    """An attempt is accounted for: delete its input and samples, and let Kubernetes delete its batch Job later.

    Nothing deletes a batch Job before that, because its pod holds the result until the operator has read it.
    """

    name: str
    keep_seconds: int
    """Seconds that the batch Job, and with it the trainer's log, stays after its end."""


@dataclass(frozen=True)
class PutInService:
    """Make one vLLM pod serve a version."""

    pod: ServerPod
    version: int
    path: str
    """The version's folder in that pod."""


@dataclass(frozen=True)
class VerifyServed:
    """Verify that one vLLM pod applies the version in service, and load it again if not."""

    pod: ServerPod
    version: int


@dataclass(frozen=True)
class LookAtModal:
    """Read the pointer of a served name on Modal, and look up the server's address. Ends beside the passes, as all
    calls of Modal."""

    server: ModalServer
    served_name: str


@dataclass(frozen=True)
class WritePointer:
    """Have the containers on Modal serve a version."""

    server: ModalServer
    pointer: ServedPointer


@dataclass(frozen=True)
class ConfirmPointer:
    """See whether the version answers on Modal."""

    server: ModalServer
    pointer: ServedPointer
    url: str | None
    """The server's address; None: it is looked up again."""


@dataclass(frozen=True)
class RemovePointer:
    """Remove the pointer of a served name whose adapter is gone."""

    served: ServedName


@dataclass(frozen=True)
class TakeOutOfService:
    """Remove a served name whose adapter is gone from one vLLM pod."""

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
    """Write the lease: granted, released, or with changed records. If it has changed since it was observed, the rest
    of the plan is skipped, and the next pass decides again.
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
    """Create the recovery pod, which looks on the volume for a version of a job."""

    name: str
    job: JobIdentity


@dataclass(frozen=True)
class WakePods:
    """Wake pods that a step left asleep."""

    lease: ServingLease
    pods: tuple[VllmPod, ...]


@dataclass(frozen=True)
class KillTrainer:
    """End a trainer pod with the shortest grace period with which its node still reports its end."""

    pod: ObjectReference


@dataclass(frozen=True)
class DeleteJob:
    """Delete the DistillJob itself: its time to live is over."""


Action: TypeAlias = (
    ApplyCompanion
    | CreateProxyToken
    | ApplyProxy
    | CreateInit
    | DeleteAttempt
    | RetireAttempt
    | PutInService
    | VerifyServed
    | LookAtModal
    | WritePointer
    | ConfirmPointer
    | RemovePointer
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
    """An Event to record about the object."""

    reason: str
    message: str
    warning: bool = False
