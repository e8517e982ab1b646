"""Readiness of a LoraAdapter, and the reason."""

from __future__ import annotations

from dataclasses import dataclass

from claas_crds.v1alpha1.conditions import AdapterReason
from claas_crds.v1alpha1.lora_adapter import Replica, ReplicaState
from claas_operator.plan.lineage.lineage import Lineage
from claas_operator.plan.world import AdapterWorld

STALLING = frozenset(
    {
        AdapterReason.ENGINE_REFUSED,
        AdapterReason.DEPLOYMENT_NOT_FOUND,
        AdapterReason.STORAGE_NOT_FOUND,
        AdapterReason.STORAGE_NOT_MOUNTED,
        AdapterReason.CONTAINER_NOT_FOUND,
        AdapterReason.SERVER_MISCONFIGURED,
        AdapterReason.SECRET_NOT_FOUND,
        AdapterReason.SECRET_INVALID,
        AdapterReason.INITIALISATION_FAILED,
        AdapterReason.CONTROL_REFUSED,
        AdapterReason.SERVED_NAME_TAKEN,
        AdapterReason.APP_NOT_DEPLOYED,
        AdapterReason.CREDENTIALS_REFUSED,
        AdapterReason.BILLING_REQUIRED,
    }
)
"""Reasons that need a person to act (kstatus: Stalled)."""


@dataclass(frozen=True)
class Readiness:
    """Whether the adapter is ready, and why."""

    ready: bool
    reason: AdapterReason
    message: str
    passes: bool = False
    """Whether a reason that needs a person may still pass by itself."""

    @property
    def stalled(self) -> bool:
        """Whether a person has to act."""
        return self.reason in STALLING and not self.passes


@dataclass(frozen=True)
class AdapterView:
    """All that the checks look at."""

    world: AdapterWorld
    lineage: Lineage
    replicas: tuple[Replica, ...]

    def first(self, state: ReplicaState) -> Replica | None:
        """The first pod in that state."""
        return next((replica for replica in self.replicas if replica.state is state), None)

    @property
    def listening(self) -> tuple[Replica, ...]:
        """The pods that are ready."""
        return tuple(replica for replica in self.replicas if replica.state is not ReplicaState.NOT_READY)
