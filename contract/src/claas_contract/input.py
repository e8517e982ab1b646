"""All that a trainer pod is told: one document, mounted as a file."""

from __future__ import annotations

from pydantic import Field

from claas_contract.base import ContractModel
from claas_crds.v1alpha1.lora_adapter import (
    EngineName,
    HandoverKind,
    LoraSpec,
    PauseMode,
    Probe,
)
from claas_crds.v1alpha1.training import TrainingConfig


class JobIdentity(ContractModel):
    """The DistillJob an attempt belongs to."""

    namespace: str
    name: str
    uid: str
    attempt: int = Field(ge=1)


class AdapterIdentity(ContractModel):
    """The LoraAdapter to train."""

    namespace: str
    name: str
    uid: str
    lora_id: str


class ModelLocation(ContractModel):
    """Where the base model is, from inside the pod: a folder, or a repository on the hub."""

    path: str | None = None
    repository: str | None = None
    revision: str | None = None


class VllmPod(ContractModel):
    """One vLLM server."""

    name: str
    """Name of the pod."""
    uid: str
    """UID of the pod: a pod of the same name made later is another one."""
    url: str
    """`<scheme>://<pod address>:<port>`."""
    storage_path: str | None = None
    """Where that pod mounts the adapter's folder (`<mountPath>/<path on the volume>`); None when it does not."""


class ServerTrust(ContractModel):
    """How servers whose URLs begin with https are verified."""

    has_ca: bool = False
    """Whether SERVING_CA_FILE is mounted; public CAs otherwise."""
    server_name: str | None = None
    """A name that their certificates are for; None: their addresses."""


class ServingTarget(ContractModel):
    """The servers of the adapter and how to treat them."""

    served_name: str
    pods: list[VllmPod]
    """Every ready pod; the hand-over says what becomes of each for the step, and each is swapped after it. Empty:
    nothing is served, the step is taken all the same."""
    handover: HandoverKind = HandoverKind.SLEEP
    """The one that the operator chose; never Auto."""
    max_slowdown_percent: int = Field(default=40, ge=1, le=90)
    """Of its tokens a second that serving may lose during the step; Share only."""
    pause: PauseMode = PauseMode.KEEP
    drain_timeout_seconds: int = 30
    max_pause_seconds: int = 120
    probe: Probe = Probe()
    has_control_token: bool = False
    """Whether CONTROL_TOKEN_FILE is mounted."""
    has_api_key: bool = False
    """Whether API_KEY_FILE is mounted."""
    tls: ServerTrust = ServerTrust()


class TrainerInput(ContractModel):
    """All that a trainer pod is told. For `run`, `job`, `parent` and `samples_file` are set; for `recover` `job`
    alone, the one whose version is looked for; for `init` none of them."""

    adapter: AdapterIdentity
    engine: EngineName = EngineName.LOCAL
    model: ModelLocation
    lora: LoraSpec
    storage_path: str
    """The adapter's folder below STORAGE_DIRECTORY."""
    job: JobIdentity | None = None
    parent: int | None = None
    """Version to train from."""
    samples_file: str | None = None
    """A JSON list of samples (`DistillBatchItem`), as a path in the pod."""
    training: TrainingConfig = TrainingConfig()
    serving: ServingTarget | None = None
