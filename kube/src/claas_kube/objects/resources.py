"""LoraAdapters and DistillJobs as objects in the cluster."""

from __future__ import annotations

from claas_crds.base import ResourceModel
from claas_crds.v1alpha1.distill_job import DistillJobSpec, DistillJobStatus
from claas_crds.v1alpha1.lora_adapter import LoraAdapterSpec, LoraAdapterStatus
from claas_crds.v1alpha1.trainer_pod import SecretKeyRef
from claas_kube.objects.meta import ObjectMeta

PROXY_SUFFIX = "-tinker-proxy"
"""An adapter's inference proxy: the Deployment's name is the adapter's with this suffix."""
PROXY_TOKEN_KEY = "token"
MODAL_SUFFIX = ".modal"
"""A vLLM on Modal is known by its app's name with this suffix, where others are by their Deployment's."""


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
    def deployment_name(self) -> str:
        """The Deployment whose pods serve it: the user's, or that of its inference proxy. For a vLLM on Modal a name
        that stands for it in Leases."""
        serving = self.spec.serving
        if serving.modal_app is not None:
            return f"{serving.modal_app.app}{MODAL_SUFFIX}"
        reference = serving.deployment_ref
        return reference.name if reference is not None else f"{self.metadata.name}{PROXY_SUFFIX}"

    @property
    def outside_cluster(self) -> bool:
        """Whether its servers are no pods of the cluster, so that there is no Deployment."""
        return self.spec.serving.modal_app is not None

    @property
    def control_token(self) -> SecretKeyRef | None:
        """The servers' control token: the user's; an inference proxy without one has the operator's."""
        serving = self.spec.serving
        if serving.control_token_secret_ref is not None or serving.tinker_proxy is None:
            return serving.control_token_secret_ref
        return SecretKeyRef(name=self.deployment_name, key=PROXY_TOKEN_KEY)

    @property
    def storage_path(self) -> str:
        """The adapter's folder below the volume's root."""
        return self.spec.storage.path or f"{self.metadata.namespace}/{self.metadata.name}"


class JobObject(ResourceModel):
    """A DistillJob in the cluster."""

    metadata: ObjectMeta
    spec: DistillJobSpec
    status: DistillJobStatus = DistillJobStatus()
