"""The trainer pod's input: one document, mounted as a file."""

from __future__ import annotations

from pydantic import Field, model_validator

from claas_contract.base import ContractModel
from claas_contract.jobs import JobIdentity
from claas_crds.v1alpha1.engine import EngineName, EngineSpec
from claas_crds.v1alpha1.lora import LoraSpec
from claas_crds.v1alpha1.serving import HandoverKind, PauseMode, Probe
from claas_crds.v1alpha1.training import TrainingConfig


class AdapterIdentity(ContractModel):
    """The LoraAdapter to train."""

    namespace: str
    name: str
    uid: str
    lora_id: str


class ModelLocation(ContractModel):
    """Location of the base model: a folder in the pod, or a repository on the hub."""

    path: str | None = None
    repository: str | None = None
    revision: str | None = None


class VllmPod(ContractModel):
    """One vLLM server."""

    name: str
    """Name of the pod."""
    uid: str
    """UID of the pod; distinguishes it from a later pod with the same name."""
    url: str
    """`<scheme>://<pod address>:<port>`."""
    storage_path: str | None = None
    """The adapter's folder as that pod mounts it (`<mountPath>/<path on the volume>`); None if it does not mount
    it."""


class ServerTrust(ContractModel):
    """How the certificates of https servers are verified."""

    has_ca: bool = False
    """Whether SERVING_CA_FILE is mounted; without it public CAs are trusted."""
    server_name: str | None = None
    """Name to verify their certificates against; None: the host in the URL."""


class ServingTarget(ContractModel):
    """The servers of the adapter and how to use them."""

    served_name: str
    pods: list[VllmPod]
    """All ready pods. The hand-over decides how each is treated during the step; afterwards each loads the new
    version. If empty, nothing is served, and the step is taken all the same."""
    handover: HandoverKind = HandoverKind.SLEEP
    """The hand-over that the operator chose; never Auto."""
    max_slowdown_percent: int = Field(default=40, ge=1, le=90)
    """Largest share of its tokens per second that serving may lose during the step, in percent; Share only."""
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
    """The trainer pod's input.

    Set for `run`: `jobs`, `parent` and `samples_file`; for `recover`: `jobs` alone, whose version is looked for; for
    `init`: none of the three."""

    adapter: AdapterIdentity
    engine: EngineSpec = EngineSpec.of(EngineName.LOCAL)
    """The engine with its settings. Release 0.1.0 wrote only a name, which is read too."""
    model: ModelLocation
    lora: LoraSpec
    storage_path: str
    """The adapter's folder below STORAGE_DIRECTORY."""
    jobs: list[JobIdentity] = []
    """The DistillJobs that the step is taken for; release 0.1.0 gave one, as `job`."""
    parent: int | None = None
    """Version to train from."""
    samples_file: str | None = None
    """A JSON list of samples (`DistillBatchItem`), as a path in the pod."""
    training: TrainingConfig = TrainingConfig()
    serving: ServingTarget | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_one_job(cls, data: object) -> object:
        if not isinstance(data, dict) or "job" not in data:
            return data
        job = data["job"]
        return {key: value for key, value in data.items() if key != "job"} | ({} if job is None else {"jobs": [job]})
