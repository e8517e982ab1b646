"""What a serving Lease tells of the pods that a step may put to sleep."""

from __future__ import annotations

from dataclasses import dataclass

from claas_kube.objects.meta import Manifest
from claas_kube.objects.serving_lease import DEPLOYMENT_ANNOTATION, SERVING_LEASE_LABELS, read_pause_grant
from claas_kube.objects.workloads import Lease

LEASES_SELECTOR = ",".join(f"{key}={value}" for key, value in sorted(SERVING_LEASE_LABELS.items()))
"""Selects the Leases of serving Deployments."""


@dataclass(frozen=True, slots=True)
class Granted:
    """The pods of a Deployment that a step may put to sleep."""

    deployment: str
    pod_uids: frozenset[str] = frozenset()


async def granted(found: Manifest, before: Granted | None) -> Granted:
    """Read a serving Lease; one that nobody holds, or that can't be read, grants nothing."""
    lease = Lease.model_validate(found)
    deployment = lease.metadata.annotations.get(DEPLOYMENT_ANNOTATION, "")
    try:
        grant = read_pause_grant(lease)
    except ValueError:
        grant = None
    return Granted(deployment, frozenset(pod.uid for pod in grant.may_pause) if grant is not None else frozenset())
