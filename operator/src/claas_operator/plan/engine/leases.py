"""Which Lease an adapter's steps need: its Deployment's, or one of its own where they need nothing of serving.

Steps that need nothing of serving hold up nobody else: steps of other adapters behind the same vLLM are taken
meanwhile, and may put it to sleep. No version is loaded into a pod that sleeps; the operator does that once it is
awake.
"""

from __future__ import annotations

from dataclasses import dataclass

from claas_crds.v1alpha1.engine import EngineName
from claas_kube.objects.resources import AdapterObject
from claas_operator.plan.engine.choice import computes_elsewhere
from claas_operator.plan.serving_lease import (
    ServingLease,
    adapter_lease_name,
    lease_name,
    new_adapter_lease,
    new_lease,
)


@dataclass(frozen=True)
class StepLeases:
    """The choice, with the engine of adapters that name none."""

    engine: EngineName

    def own(self, adapter: AdapterObject) -> bool:
        """Whether the adapter's steps have a Lease of their own."""
        return computes_elsewhere(adapter, self.engine)

    def name(self, adapter: AdapterObject) -> str:
        """Name of the Lease."""
        return adapter_lease_name(adapter.metadata.name) if self.own(adapter) else lease_name(adapter.deployment_name)

    def other_name(self, adapter: AdapterObject) -> str:
        """Name of the Lease that its steps would need with an engine of the other kind."""
        return lease_name(adapter.deployment_name) if self.own(adapter) else adapter_lease_name(adapter.metadata.name)

    def new(self, adapter: AdapterObject) -> ServingLease:
        """The Lease, where it does not exist yet."""
        namespace = adapter.metadata.namespace
        if self.own(adapter):
            return new_adapter_lease(namespace, adapter.metadata.name)
        return new_lease(namespace, adapter.deployment_name)
