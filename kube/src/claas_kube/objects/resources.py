"""LoraAdapters and DistillJobs as objects in the cluster."""

from __future__ import annotations

from claas_crds.base import ResourceModel
from claas_crds.v1alpha1.distill_job import DistillJobSpec, DistillJobStatus
from claas_crds.v1alpha1.lora_adapter import LoraAdapterSpec, LoraAdapterStatus
from claas_kube.objects.meta import ObjectMeta


class AdapterObject(ResourceModel):
    """A LoraAdapter in the cluster."""

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
    """A DistillJob in the cluster."""

    metadata: ObjectMeta
    spec: DistillJobSpec
    status: DistillJobStatus = DistillJobStatus()
