"""What a model name stands for: an adapter, or a base model, and the servers that answer."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from claas_crds.v1alpha1.engine import EngineName
from claas_crds.v1alpha1.serving import Serving
from claas_kube.objects.resources import AdapterObject


@dataclass(frozen=True, slots=True)
class ServerGroup:
    """The pods of one vLLM Deployment, or a vLLM outside the cluster, and how they are asked."""

    namespace: str
    deployment: str
    serving: Serving
    """Port, scheme, TLS and Secrets, as one of its adapters gives them."""
    adapter: str | None = None
    """The adapter whose status has the address of a vLLM outside the cluster; None: they are pods."""

    @property
    def outside(self) -> bool:
        """Whether they are outside the cluster, on Modal."""
        return self.adapter is not None


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoraAdapter as the gateway sees it."""

    found: AdapterObject

    @property
    def namespace(self) -> str:
        """Its namespace."""
        return self.found.metadata.namespace

    @property
    def name(self) -> str:
        """Its name."""
        return self.found.metadata.name

    @property
    def uid(self) -> str:
        """Its UID."""
        return self.found.metadata.uid

    @property
    def created(self) -> datetime | None:
        """When it was created."""
        return self.found.metadata.creation_timestamp

    @property
    def lora_id(self) -> str:
        """The CLaaS identifier."""
        return self.found.lora_id

    @property
    def served_name(self) -> str:
        """The model name that vLLM knows."""
        return self.found.served_name

    @property
    def base_model(self) -> str:
        """The base model's name in vLLM."""
        return self.found.spec.model.name

    @property
    def engine(self) -> EngineName | None:
        """Where its steps are computed; None: as the operator's execution mode says."""
        if self.samples_from_service:
            return EngineName.TINKER
        if self.found.outside_cluster:
            return EngineName.MODAL
        return self.found.spec.engine.name if self.found.spec.engine is not None else None

    @property
    def samples_from_service(self) -> bool:
        """Whether an engine's service keeps its weights, which its servers sample from."""
        return self.found.spec.serving.tinker_proxy is not None

    @property
    def records_logprobs(self) -> bool:
        """Whether log-probabilities of its answers are recorded. A service tells them in any case, and to have them
        computed later costs another call."""
        return self.found.spec.rollouts.logprobs or self.samples_from_service

    @property
    def service_model(self) -> str:
        """That service's name of the base model."""
        engine = self.found.spec.engine
        named = engine.tinker.base_model if engine is not None and engine.tinker is not None else None
        return named or self.found.spec.model.public_name

    @property
    def servers(self) -> ServerGroup:
        """The servers that serve it."""
        token = self.found.control_token
        serving = self.found.spec.serving.model_copy(update={"control_token_secret_ref": token})
        told_by = self.name if self.found.outside_cluster else None
        return ServerGroup(self.namespace, self.found.deployment_name, serving, told_by)


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A base model that some adapter's Deployment serves."""

    name: str
    servers: ServerGroup


Target = Adapter | BaseModel
"""What answers to a model name."""


@dataclass(frozen=True, slots=True)
class Server:
    """One vLLM pod, or all that answer at an address outside the cluster."""

    namespace: str
    pod: str
    """Its name; `modal:<app>` for a vLLM on Modal."""
    uid: str
    url: str
    """`<scheme>://<pod address>:<port>`, or the address outside the cluster."""
    ready: bool
    may_sleep: bool
    """Whether a step was granted that may put it to sleep, or it is known to be asleep."""
    outside: bool = False
    """Whether it is outside the cluster, behind a front that starts it when a request comes: each costs money."""
