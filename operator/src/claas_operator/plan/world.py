"""The world as one frozen value: what `observe` reads and the plans decide from."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from claas_contract.input import VllmPod
from claas_contract.jobs import JobIdentity
from claas_contract.progress import Progress
from claas_contract.result import PublishedVersion, TrainerResult
from claas_crds.v1alpha1.lora_adapter import AdapterVersion
from claas_kube.objects.resources import AdapterObject, JobObject
from claas_operator.plan.lineage.lineage import Lineage
from claas_operator.plan.server.handover_choice import HandoverChoice
from claas_operator.plan.server.load_failures import LoadFailure
from claas_operator.plan.server.traits import ServerTraits
from claas_operator.plan.serving_lease import ServedName, ServingLease


@dataclass(frozen=True)
class ServerState:
    """What one vLLM server says of itself."""

    reachable: bool
    refused: bool = False
    """It wants a token that we do not have."""
    asleep: bool = False
    loaded_version: int | None = None
    """The version behind the served name; None: none."""
    loaded_path: str | None = None
    remnants: bool = False
    """Whether versions of the served name are loaded that it does not answer with."""
    verified: bool = True
    """False: nobody has seen the version answer its probe since it was loaded, or since the server last woke."""
    companion: bool = False
    companion_supported: bool = True
    persisted: bool = True
    root_path: str = ""
    """What must stand before our paths there (vLLM's --root-path)."""
    base_models: tuple[str, ...] = ()
    """The names that it lists for the base model; none when it was not asked for them."""
    traits: ServerTraits | None = None
    """How it was started, where its companion tells that."""
    error: str = ""


@dataclass(frozen=True)
class ServerPod:
    """One pod of the serving Deployment."""

    name: str
    uid: str
    ready: bool
    url: str | None
    """None until the pod has an address."""
    storage_path: str | None
    """Where it mounts the adapter's folder; None when it does not."""
    server: ServerState | None
    """None when it was not asked, because it is not ready."""
    load_failure: LoadFailure | None = None
    """Why a version could not be put into service there."""
    trouble: str = ""
    """What it is doing while it is not ready."""
    storage_problem: str = ""
    """Why it does not see the adapter's folder, when it does not."""

    def as_target(self) -> VllmPod:
        """The pod as it is named to a trainer; only for pods with an address."""
        return VllmPod(name=self.name, uid=self.uid, url=self.url or "", storage_path=self.storage_path)


class TrainerState(StrEnum):
    """How far a trainer pod is."""

    ABSENT = "Absent"
    """Neither its batch Job nor a pod of it exists."""
    RUNNING = "Running"
    """Its trainer runs, or may yet run."""
    SUCCEEDED = "Succeeded"
    """Its trainer ended with exit code 0."""
    FAILED = "Failed"
    """Its trainer ended with another exit code or was killed, or its pod ended without it."""
    LOST = "Lost"
    """The batch Job is there and its pod has gone without a trace."""


@dataclass(frozen=True)
class ObjectReference:
    """A pod or batch Job in the namespace that is looked at."""

    name: str
    uid: str


@dataclass(frozen=True)
class TrainerStart:
    """A trainer that does not run yet."""

    since: datetime
    """When its batch Job was made."""
    hindered: bool
    """Whether Kubernetes says what keeps it from starting; the attempt's message quotes it."""
    generation: int | None = None
    """Of its owner's spec, when the batch Job was made."""


@dataclass(frozen=True)
class TrainerJob:
    """One batch Job of a trainer and its pod: for an attempt at a step, for the initial version, or for a look at the
    volume."""

    name: str
    """Name of its batch Job."""
    state: TrainerState
    alive: bool
    """Whether the trainer in a pod of it may still run a process."""
    uid: str | None = None
    """UID of its batch Job; None while there is none."""
    pod: ObjectReference | None = None
    result: TrainerResult | None = None
    exit_code: int | None = None
    message: str = ""
    """What Kubernetes says when there is no result: OOMKilled, image can't be pulled, unschedulable, ..."""
    progress: Progress | None = None
    finished_at: datetime | None = None
    held_open: bool = False
    """Whether other containers keep its pod although its trainer has ended."""
    retired: bool = False
    """Whether its batch Job is set to be removed some time after its end."""
    start: TrainerStart | None = None
    """While its trainer does not run yet."""

    @property
    def hindered(self) -> bool:
        """Whether something keeps its trainer from starting."""
        return self.start is not None and self.start.hindered


@dataclass(frozen=True)
class SecretsSeen:
    """The Secrets that an adapter names: control token, API key, the hub's token."""

    missing: tuple[str, ...] = ()
    """`Secret/key` of each that is not there."""
    invalid: tuple[str, ...] = ()
    """Field, Secret, key and fault of each whose content can't be sent as a header."""
    changed: datetime | None = None
    """When one of them last changed."""

    @property
    def usable(self) -> bool:
        """Whether all are there and can be sent."""
        return not (self.missing or self.invalid)


@dataclass(frozen=True)
class AdapterWorld:
    """All that a LoraAdapter's plan looks at."""

    now: datetime
    adapter: AdapterObject
    claim_found: bool
    secrets: SecretsSeen
    deployment_found: bool
    wanted_replicas: int
    no_pod: str
    """Why no pod of the Deployment is ready; only to be told when none is."""
    pods: tuple[ServerPod, ...]
    init: TrainerJob
    lease: ServingLease | None
    products: tuple[PublishedVersion, ...]
    """Versions that DistillJobs of this adapter report."""
    rejected: tuple[AdapterVersion, ...]
    """Those of which they report that serving refused them."""
    running_job: str | None
    """The DistillJob that holds the lease for this adapter and has not published yet."""
    recovery: TrainerJob
    """The pod that looks for the version of a job which the lease has as unaccounted for."""
    companion_current: bool
    """Whether the companion's ConfigMap is what this release has."""
    handover: HandoverChoice
    """What becomes of serving at the next step."""
    server: ServerTraits
    """How the Deployment's servers were started, by themselves or by its template."""
    containers: tuple[str, ...] | None
    """The containers of the Deployment's template; None where there is no Deployment."""
    served: ServedName | None = None
    """What is written down of the adapter's served name at its Deployment."""
    adapters_here: int = 1
    """How many LoraAdapters name the Deployment."""
    name_taken_by: str | None = None
    """An older LoraAdapter with the same served name on the same Deployment."""


@dataclass(frozen=True)
class RecordedPod:
    """A pod that the holder of a grant may pause, as it is now."""

    target: VllmPod
    exists: bool
    """Whether a pod of that UID is still there."""
    server: ServerState | None
    """None when it was not asked."""

    @property
    def asleep(self) -> bool:
        """Whether it surely sleeps."""
        return self.exists and self.server is not None and self.server.asleep

    @property
    def settled(self) -> bool:
        """Whether it surely does not sleep: it is gone, or says that it is awake."""
        if not self.exists:
            return True
        return self.server is not None and self.server.reachable and not (self.server.asleep or self.server.refused)


@dataclass(frozen=True)
class JobWorld:
    """All that a DistillJob's plan looks at."""

    now: datetime
    job: JobObject
    adapter: AdapterObject | None
    samples_error: str | None
    """Why the samples can't be had: the object or key that is missing. None: they are there."""
    input_error: str | None
    """Why no trainer's input can be made of the job. None: it can."""
    jobs_ahead: int
    """Jobs that wait for the same Deployment and have their turn earlier; the holder of its lease is none of them."""
    lineage: Lineage
    """The adapter's versions, by its status and by what its jobs report; empty where there is no adapter."""
    wanted_replicas: int
    """How many pods the Deployment is to have."""
    unsettled: str | None
    """Why the Deployment's pods are about to change, or one of them may hold a GPU without serving yet or any more.
    None: they are settled, or were not looked at."""
    lease: ServingLease | None
    attempt: TrainerJob
    """The current attempt, by the name it has or will have."""
    recovery: TrainerJob
    """The pod that looks on the volume for what the current attempt left."""
    attempts_alive: bool
    """Whether a trainer pod of any attempt may still run."""
    pods: tuple[ServerPod, ...]
    """The Deployment's pods; their servers are asked only when the lease may be granted in this pass."""
    recorded: tuple[RecordedPod, ...]
    """The pods that this job may have paused; asked only between two attempts."""
    handover: HandoverChoice
    """What becomes of serving at the next attempt."""
    held_open: tuple[ObjectReference, ...] = ()
    """Batch Jobs of this job whose trainer has ended, while other containers keep their pods."""
    told: datetime | None = None
    """When the operator last wrote the job's status; None: not since it began."""
    sample_fault: str | None = None
    """What is wrong with a sample, as far as the operator can read them. None: nothing that it can see."""

    @property
    def age_seconds(self) -> float:
        """How long ago the job was created."""
        return (self.now - (self.job.metadata.creation_timestamp or self.now)).total_seconds()


@dataclass(frozen=True)
class Orphan:
    """A served name whose adapter is gone, or has taken another name, and the pods that may still serve it."""

    served: ServedName
    pods: tuple[ServerPod, ...]


@dataclass(frozen=True)
class LeaseWorld:
    """All that a serving Lease's plan looks at."""

    now: datetime
    lease: ServingLease
    job_active: bool
    """Whether the holder exists and has something to do that needs the lease."""
    unaccounted: tuple[JobIdentity, ...]
    """Jobs of the holder that may have published a version which the adapter does not know of."""
    alive_pods: tuple[ObjectReference, ...]
    """Trainer pods of the holder that may still run."""
    attempts_open: bool
    """Whether a batch Job of the holder has not ended: Kubernetes may yet make a pod of it."""
    pods: tuple[RecordedPod, ...]
    deployment_found: bool
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
