"""The world as one frozen value, read by `observe` and input of the plans."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from claas_contract.input import VllmPod
from claas_contract.jobs import JobIdentity
from claas_contract.progress import Progress
from claas_contract.result import PublishedVersion, TrainerResult
from claas_crds.v1alpha1.engine import EngineName
from claas_crds.v1alpha1.version import AdapterVersion
from claas_kube.objects.resources import AdapterObject, JobObject
from claas_operator.plan.engine.places import Places
from claas_operator.plan.lineage.lineage import Lineage
from claas_operator.plan.modal.pointer import ModalServer
from claas_operator.plan.modal.state import ModalState, Removal
from claas_operator.plan.samples import SamplesFault
from claas_operator.plan.server.handover_choice import HandoverChoice
from claas_operator.plan.server.load_failures import LoadFailure
from claas_operator.plan.server.traits import ServerTraits
from claas_operator.plan.serving_lease import ServedName, ServingLease


@dataclass(frozen=True)
class ServerState:
    """The state that a vLLM server reports."""

    reachable: bool
    refused: bool = False
    """Whether it refuses the operator's token."""
    asleep: bool = False
    loaded_version: int | None = None
    """The version behind the served name, if any."""
    loaded_path: str | None = None
    remnants: bool = False
    """Whether further versions of the served name are loaded but not in service."""
    verified: bool = True
    """False: the version has not answered a probe since it was loaded, or since the server last woke."""
    companion: bool = False
    companion_supported: bool = True
    persisted: bool = True
    root_path: str = ""
    """Prefix for the paths of requests (vLLM's --root-path)."""
    base_models: tuple[str, ...] = ()
    """The names that it lists for the base model; empty if it was not asked."""
    traits: ServerTraits | None = None
    """Its settings, if its companion reports them."""
    error: str = ""


@dataclass(frozen=True)
class ServerPod:
    """One pod of the serving Deployment."""

    name: str
    uid: str
    ready: bool
    url: str | None
    """None until the pod has an IP."""
    storage_path: str | None
    """Path of the adapter's folder in the pod; None if it is not mounted."""
    server: ServerState | None
    """None if it was not asked because it is not ready."""
    load_failure: LoadFailure | None = None
    """Why the last load of a version failed there."""
    trouble: str = ""
    """Its state while it is not ready."""
    storage_problem: str = ""
    """Why the adapter's folder is not mounted, if it is not."""

    def as_target(self) -> VllmPod:
        """The pod in the form for a trainer's input; only for pods with an IP."""
        return VllmPod(name=self.name, uid=self.uid, url=self.url or "", storage_path=self.storage_path)


class TrainerState(StrEnum):
    """State of a trainer pod."""

    ABSENT = "Absent"
    """Neither its batch Job nor its pod exists."""
    RUNNING = "Running"
    """Its trainer runs or may still run."""
    SUCCEEDED = "Succeeded"
    """Its trainer ended with exit code 0."""
    FAILED = "Failed"
    """Its trainer ended with another exit code or was killed, or its pod ended without it."""
    LOST = "Lost"
    """The batch Job exists, but its pod has vanished."""


@dataclass(frozen=True)
class ObjectReference:
    """A pod or batch Job in the same namespace."""

    name: str
    uid: str


@dataclass(frozen=True)
class TrainerStart:
    """A trainer that does not run yet."""

    since: datetime
    """When its batch Job was created."""
    hindered: bool
    """Whether Kubernetes reports what keeps it from starting; the attempt's message quotes it."""
    generation: int | None = None
    """Generation of its owner's spec when the batch Job was created."""


@dataclass(frozen=True)
class TrainerJob:
    """One batch Job of a trainer and its pod: for an attempt, an initial version, or a recovery."""

    name: str
    """Name of its batch Job."""
    state: TrainerState
    alive: bool
    """Whether a process of its trainer may still run."""
    uid: str | None = None
    """UID of its batch Job; None if there is none."""
    pod: ObjectReference | None = None
    result: TrainerResult | None = None
    exit_code: int | None = None
    message: str = ""
    """Message of Kubernetes if there is no result: OOMKilled, image can't be pulled, unschedulable, ..."""
    progress: Progress | None = None
    finished_at: datetime | None = None
    held_open: bool = False
    """Whether other containers keep its pod running after its trainer has ended."""
    retired: bool = False
    """Whether its batch Job has a time to live after its end."""
    start: TrainerStart | None = None
    """Set until its trainer runs."""

    @property
    def hindered(self) -> bool:
        """Whether its trainer is kept from starting."""
        return self.start is not None and self.start.hindered


@dataclass(frozen=True)
class SecretsSeen:
    """The Secrets that an adapter names: control token, API key, the hub's token, the key of the engine's service."""

    missing: tuple[str, ...] = ()
    """`Secret/key (field)` of each missing one."""
    invalid: tuple[str, ...] = ()
    """Field, Secret, key and fault of each whose content can't be sent in a header."""
    changed: datetime | None = None
    """When one of them last changed."""

    @property
    def usable(self) -> bool:
        """Whether all exist and can be sent."""
        return not (self.missing or self.invalid)


@dataclass(frozen=True)
class ProxyState:
    """The inference proxy of an adapter that has one."""

    current: bool
    """Whether its Deployment and Service are as the operator made them for this spec."""
    token_missing: bool = False
    """Whether the operator has to choose its control token: there is none, or it was emptied."""
    taken_by: str | None = None
    """An object with its name that is not the adapter's: kind and name."""


@dataclass(frozen=True)
class AdapterWorld:
    """Input of a LoraAdapter's plan."""

    now: datetime
    adapter: AdapterObject
    claim_found: bool
    secrets: SecretsSeen
    deployment_found: bool
    wanted_replicas: int
    no_pod: str
    """Why no pod of the Deployment is ready; only set if none is."""
    pods: tuple[ServerPod, ...]
    init: TrainerJob
    lease: ServingLease | None
    """The Deployment's."""
    steps_lease: ServingLease | None
    """That of the adapter's steps: its own, or the Deployment's."""
    products: tuple[PublishedVersion, ...]
    """Versions that DistillJobs of this adapter report."""
    rejected: tuple[AdapterVersion, ...]
    """Versions that serving rejected, by their reports."""
    running_job: str | None
    """The DistillJob that holds the lease for this adapter and has not published yet."""
    recovery: TrainerJob
    """The recovery pod for an unaccounted job of the lease."""
    companion_current: bool
    """Whether the companion's ConfigMap is that of this release."""
    handover: HandoverChoice
    """The hand-over of the next step."""
    server: ServerTraits
    """Settings of the Deployment's servers, reported or from its template."""
    containers: tuple[str, ...] | None
    """The containers of the Deployment's template; None without a Deployment."""
    served: ServedName | None = None
    """What is written down of the adapter's served name at its Deployment."""
    adapters_here: int = 1
    """How many LoraAdapters name the Deployment."""
    engine: EngineName = EngineName.LOCAL
    """The engine of its steps, by its spec or the operator's execution mode."""
    refusals: tuple[str, ...] = ()
    """Settings that the adapter's engine can't follow, a sentence for each."""
    proxy: ProxyState | None = None
    """None: the adapter is served by a vLLM."""
    modal_server: ModalServer | None = None
    """None: its servers are in the cluster."""
    modal: ModalState | None = None
    """What is known of the server on Modal, if there is one."""
    name_taken_by: str | None = None
    """An older LoraAdapter with the same served name on the same Deployment."""


@dataclass(frozen=True)
class RecordedPod:
    """Current state of a pod that the lease holder may pause."""

    target: VllmPod
    exists: bool
    """Whether the pod with that UID still exists."""
    server: ServerState | None
    """None if it was not asked."""

    @property
    def asleep(self) -> bool:
        """Whether it certainly sleeps."""
        return self.exists and self.server is not None and self.server.asleep

    @property
    def settled(self) -> bool:
        """Whether it certainly does not sleep: it is gone, or reports that it is awake."""
        if not self.exists:
            return True
        return self.server is not None and self.server.reachable and not (self.server.asleep or self.server.refused)


@dataclass(frozen=True)
class JobWorld:
    """Input of a DistillJob's plan."""

    now: datetime
    job: JobObject
    adapter: AdapterObject | None
    samples_error: str | None
    """The missing object or key of the samples. None: they exist."""
    input_error: str | None
    """Why the samples do not fit into a trainer's input. None: they do."""
    jobs_ahead: int
    """Jobs whose turn for the same lease comes earlier; without the lease holder."""
    lineage: Lineage
    """The lineage of the adapter, from its status and its jobs' reports; empty without an adapter."""
    wanted_replicas: int
    """Desired number of pods of the Deployment."""
    unsettled: str | None
    """Why the Deployment's pods are not settled: they are about to change, or one may hold a GPU without serving.
    None: they are settled, or were not checked."""
    lease: ServingLease | None
    """That of the adapter's steps."""
    attempt: TrainerJob
    """The current or next attempt."""
    recovery: TrainerJob
    """The recovery pod of the current attempt."""
    attempts_alive: bool
    """Whether a trainer pod of any attempt may still run."""
    pods: tuple[ServerPod, ...]
    """The Deployment's pods; their servers are asked only if this pass may grant the lease."""
    recorded: tuple[RecordedPod, ...]
    """The pods that this job may have paused; their servers are asked only between two attempts."""
    handover: HandoverChoice
    """The hand-over of the next attempt."""
    held_open: tuple[ObjectReference, ...] = ()
    """Batch Jobs of this job whose pods other containers keep running after the trainer has ended."""
    told: datetime | None = None
    """When the operator last wrote the job's status; None: not since its start."""
    places: Places | None = None
    """How full the places for steps are that are computed elsewhere; None: the step needs its Deployment."""
    sample_fault: SamplesFault | None = None
    """Faults of samples that the operator can see. None: none."""

    @property
    def age_seconds(self) -> float:
        """Age of the job."""
        return (self.now - (self.job.metadata.creation_timestamp or self.now)).total_seconds()


@dataclass(frozen=True)
class Orphan:
    """A served name whose adapter is gone or has another name now, and the pods that may still serve it."""

    served: ServedName
    pods: tuple[ServerPod, ...]
    removal: Removal | None = None
    """Of its pointer, if a vLLM on Modal serves it."""


@dataclass(frozen=True)
class LeaseWorld:
    """Input of a serving Lease's plan."""

    now: datetime
    lease: ServingLease
    job_active: bool
    """Whether the holder exists and still needs the lease."""
    unaccounted: tuple[JobIdentity, ...]
    """Jobs of the holder that may have published a version which the adapter does not know of."""
    alive_pods: tuple[ObjectReference, ...]
    """Trainer pods of the lease holder that may still run."""
    attempts_open: bool
    """Whether a batch Job of the lease holder has not ended, so that Kubernetes may still create a pod for it."""
    pods: tuple[RecordedPod, ...]
    subject_found: bool
    """Whether the Deployment, or the adapter, that the lease is for exists."""
    orphans: tuple[Orphan, ...]
    more_orphans: bool = False
    """Whether there are more than were looked at in this pass."""
    lost: tuple[str, ...] = ()
    """Keys of `lease.unaccounted` whose adapter is gone."""
    asleep_since: datetime | None = None
    """When this operator first saw a pod asleep in the pause that lasts; None: it has not."""
    moved: frozenset[str] = frozenset()
    """Names in `lease.served` that have a Lease of their own by now."""

    @property
    def asleep_without_step(self) -> bool | None:
        """Whether a pod that the grant may have paused sleeps, or refuses the token, while no trainer lives.

        None: one does not answer.
        """
        if self.lease.grant is None or self.alive_pods:
            return False
        if any(pod.asleep or (pod.exists and pod.server is not None and pod.server.refused) for pod in self.pods):
            return True
        return False if all(pod.settled for pod in self.pods) else None

    @property
    def asleep(self) -> bool:
        """Whether a pod that the grant may have paused surely sleeps."""
        return any(pod.asleep for pod in self.pods)
