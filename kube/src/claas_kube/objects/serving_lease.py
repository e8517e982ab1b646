"""The serving Lease of a vLLM Deployment, as far as others than the operator read it: pods that a step may pause."""

from __future__ import annotations

from datetime import datetime
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from claas_crds import GROUP
from claas_crds.v1alpha1.serving import HandoverKind
from claas_kube.objects.workloads import Lease

GRANT_ANNOTATION = f"{GROUP}/grant"
DEPLOYMENT_ANNOTATION = f"{GROUP}/deployment"
"""Name of the Deployment."""
LEASE_LABEL = f"{GROUP}/lease"
MANAGED_LABELS = {"app.kubernetes.io/managed-by": "claas-operator"}
SERVING_LEASE_LABELS = {LEASE_LABEL: "serving", **MANAGED_LABELS}
"""On the serving Lease of each Deployment, and on no other."""


PodT = TypeVar("PodT")


class GrantModel(BaseModel):
    """Part of an annotation; a later release may add fields."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class GrantedPod(GrantModel):
    """A vLLM pod of a grant."""

    name: str
    uid: str
    """Distinguishes it from a later pod with the same name."""


class PauseGrant(GrantModel, Generic[PodT]):
    """The part of a grant that says which pods may be paused."""

    pods: list[PodT]
    """The pods of this attempt: it puts its version into service there and, with the hand-over Sleep, may pause
    them."""
    handover: HandoverKind = HandoverKind.SLEEP
    """Hand-over of the attempt; never Auto."""
    asleep_since: datetime | None = None
    """When the operator first saw one of the pods asleep."""

    @property
    def may_pause(self) -> tuple[PodT, ...]:
        """The pods that the attempt may pause; only these are ever woken by the operator."""
        return tuple(self.pods) if self.handover is HandoverKind.SLEEP else ()


def grant_text(lease: Lease) -> str | None:
    """The grant in a serving Lease, as JSON; None while no job holds it."""
    return (lease.metadata.annotations.get(GRANT_ANNOTATION) or None) if lease.spec.holder_identity else None


def read_pause_grant(lease: Lease) -> PauseGrant[GrantedPod] | None:
    """The grant in a serving Lease; None while no job holds it. Raises ValueError for a damaged one."""
    text = grant_text(lease)
    return None if text is None else PauseGrant[GrantedPod].model_validate_json(text)
