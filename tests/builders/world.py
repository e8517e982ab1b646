"""Worlds for the operator's plans: typed, with defaults for all that a test does not care about."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from pydantic import JsonValue

from claas_contract.input import VllmPod
from claas_contract.jobs import JobIdentity, JobReference
from claas_contract.result import PublishedVersion, TrainerResult
from claas_crds.v1alpha1.conditions import Condition, ConditionStatus
from claas_crds.v1alpha1.distill_job import (
    AdapterReference,
    CompletionPoint,
    DistillJobSpec,
    DistillJobStatus,
    SamplesSource,
)
from claas_crds.v1alpha1.engine import EngineSpec
from claas_crds.v1alpha1.lora_adapter import (
    BaseModelSpec,
    ClaimVolume,
    LoraAdapterSpec,
    LoraAdapterStatus,
    ModelSource,
    Storage,
)
from claas_crds.v1alpha1.serving import HandoverKind, Serving
from claas_crds.v1alpha1.step import Timings
from claas_crds.v1alpha1.trainer_pod import TrainerPod
from claas_crds.v1alpha1.training import DistillBatchItem
from claas_crds.v1alpha1.version import AdapterVersion
from claas_kube.objects.meta import ObjectMeta
from claas_kube.objects.resources import AdapterObject, JobObject
from claas_operator.plan.lineage.lineage import Lineage
from claas_operator.plan.naming import attempt_name, init_name
from claas_operator.plan.samples import SamplesFault
from claas_operator.plan.server.handover_choice import HandoverChoice
from claas_operator.plan.server.load_failures import LoadFailure
from claas_operator.plan.server.traits import ServerTraits
from claas_operator.plan.serving_lease import Grant, ServedName, ServedRecord, ServingLease, lease_name
from claas_operator.plan.world import (
    AdapterWorld,
    JobWorld,
    LeaseWorld,
    ObjectReference,
    Orphan,
    RecordedPod,
    SecretsSeen,
    ServerPod,
    ServerState,
    TrainerJob,
    TrainerState,
)

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
NAMESPACE = "team"
DEPLOYMENT = "vllm"
FOLDER = f"{NAMESPACE}/tone"
MOUNTED = f"/mnt/adapters/{FOLDER}"
AWAKE = ServerState(reachable=True)
ASLEEP = ServerState(reachable=True, asleep=True)
NO_FAULTS = SecretsSeen()
SLEEP = HandoverChoice(HandoverKind.SLEEP, "the test says so")
UNREACHABLE = ServerState(reachable=False, error="no answer")
REFUSED = ServerState(reachable=True, refused=True, error="the control token is wrong")


def ago(seconds: float) -> datetime:
    """A time before NOW."""
    return NOW - timedelta(seconds=seconds)


def metadata(name: str, *, age_seconds: float = 60.0, deleted: bool = False) -> ObjectMeta:
    """Metadata of an object; its UID follows from its name."""
    return ObjectMeta(
        name=name,
        namespace=NAMESPACE,
        uid=f"uid-of-{name}",
        generation=1,
        resource_version="1",
        creation_timestamp=ago(age_seconds),
        deletion_timestamp=ago(1) if deleted else None,
    )


def condition(kind: str, holds: bool | None, reason: str = "Because", *, since_seconds: float = 30.0) -> Condition:
    """A condition as it stands in status."""
    status = {True: ConditionStatus.TRUE, False: ConditionStatus.FALSE, None: ConditionStatus.UNKNOWN}[holds]
    return Condition(
        type=kind, status=status, reason=reason, message="said before", last_transition_time=ago(since_seconds)
    )


def version(number: int, *, job: str | None = None, parent: int | None = None) -> AdapterVersion:
    """A version as an adapter's status names it."""
    return AdapterVersion(
        number=number,
        path=f"{FOLDER}/versions/{number}",
        digest=f"sha256:{number}",
        created=ago(100 - number),
        job=job,
        job_uid=f"uid-of-{job}" if job else None,
        parent=parent,
    )


def chain(*numbers: int) -> list[AdapterVersion]:
    """Versions of which each was trained from the one before it."""
    return [version(number, parent=parent) for number, parent in zip(numbers, (None, *numbers), strict=False)]


def published(number: int, *, job: str | None = "step", parent: int | None = None) -> PublishedVersion:
    """A version as a trainer reports it."""
    return PublishedVersion(
        number=number,
        path=f"{FOLDER}/versions/{number}",
        digest=f"sha256:{number}",
        created=ago(5),
        parent=parent,
        jobs=[JobReference(name=job, uid=f"uid-of-{job}")] if job else [],
        metrics={"loss": 0.25},
    )


def adapter(
    name: str = "tone",
    *,
    versions: tuple[int, ...] = (0,),
    served: int | None = 0,
    conditions: tuple[Condition, ...] = (),
    deleted: bool = False,
    serving: dict[str, JsonValue] | None = None,
    trainer: TrainerPod | None = None,
    engine: EngineSpec | None = None,
) -> AdapterObject:
    """A LoraAdapter; by default version 0 is published and served."""
    return AdapterObject(
        metadata=metadata(name, deleted=deleted),
        spec=LoraAdapterSpec(
            model=BaseModelSpec(
                name="base", source=ModelSource(persistent_volume_claim=ClaimVolume(claim_name="models"))
            ),
            serving=Serving.model_validate({"deploymentRef": {"name": DEPLOYMENT}, **(serving or {})}),
            storage=Storage(claim_name="adapters"),
            trainer=trainer or TrainerPod(),
            engine=engine,
        ),
        status=LoraAdapterStatus(
            conditions=list(conditions),
            served_version=served,
            latest_version=max(versions, default=None),
            versions=chain(*versions),
        ),
    )


def job(
    name: str = "step",
    *,
    status: DistillJobStatus | None = None,
    age_seconds: float = 60.0,
    suspend: bool = False,
    backoff_limit: int = 3,
    deadline_seconds: int = 3600,
    ttl_seconds: int | None = None,
    deleted: bool = False,
    samples: SamplesSource | None = None,
    complete_when: CompletionPoint = CompletionPoint.IN_SERVICE,
) -> JobObject:
    """A DistillJob with one inline sample."""
    sample = DistillBatchItem(user_prompt="a prompt", response="an answer", feedback="a feedback")
    return JobObject(
        metadata=metadata(name, age_seconds=age_seconds, deleted=deleted),
        spec=DistillJobSpec(
            adapter_ref=AdapterReference(name="tone"),
            samples=samples or SamplesSource(inline=[sample]),
            suspend=suspend,
            backoff_limit=backoff_limit,
            active_deadline_seconds=deadline_seconds,
            ttl_seconds_after_finished=ttl_seconds,
            complete_when=complete_when,
        ),
        status=status or DistillJobStatus(),
    )


def vllm_pod(
    name: str = "vllm-0",
    *,
    server: ServerState | None = None,
    ready: bool = True,
    mounted: bool = True,
    load_error: str | None = None,
    load_version: int = 0,
    retry_in: float = 30.0,
) -> ServerPod:
    """A pod of the Deployment; its server was not asked unless `server` says what it answered."""
    return ServerPod(
        name=name,
        uid=f"uid-of-{name}",
        ready=ready,
        url=f"http://{name}:8000",
        storage_path=MOUNTED if mounted else None,
        server=server,
        load_failure=None if load_error is None else LoadFailure(load_version, 1, load_error, 1, ago(-retry_in)),
    )


def serves(
    number: int | None, *, companion: bool = True, asleep: bool = False, persisted: bool = True
) -> ServerState:
    """A server that answers with a version."""
    path = None if number is None else f"{MOUNTED}/versions/{number}"
    server = ServerState(reachable=True, loaded_version=number, loaded_path=path, companion=companion)
    return replace(server, asleep=asleep, persisted=persisted)


def target(name: str = "vllm-0") -> VllmPod:
    """A pod as a grant names it."""
    return VllmPod(name=name, uid=f"uid-of-{name}", url=f"http://{name}:8000", storage_path=MOUNTED)


def recorded(name: str = "vllm-0", server: ServerState | None = AWAKE, *, exists: bool = True) -> RecordedPod:
    """A granted pod as it is now."""
    return RecordedPod(target(name), exists, server if exists else None)


def grant(
    holder: str = "step",
    *,
    attempt: int = 1,
    pods: tuple[str, ...] = ("vllm-0",),
    asleep_since: datetime | None = None,
    stopped_because: str | None = None,
    max_pause_seconds: int = 120,
    handover: HandoverKind = HandoverKind.SLEEP,
) -> Grant:
    """A grant to a job."""
    return Grant(
        jobs=[identity(holder, attempt)],
        adapter_name="tone",
        adapter_uid="uid-of-tone",
        pods=[target(name) for name in pods],
        handover=handover,
        max_pause_seconds=max_pause_seconds,
        granted_at=ago(20),
        asleep_since=asleep_since,
        stopped_because=stopped_because,
    )


def identity(job: str = "step", attempt: int = 1) -> JobIdentity:
    """A job and the number of the attempt at it."""
    return JobIdentity(namespace=NAMESPACE, name=job, uid=f"uid-of-{job}", attempt=attempt)


def lease(held: Grant | None = None) -> ServingLease:
    """The Deployment's lease; free unless a grant is given."""
    return ServingLease(
        name=lease_name(DEPLOYMENT), namespace=NAMESPACE, resource_version="7", deployment=DEPLOYMENT, grant=held
    )


def trainer_pod(name: str) -> ObjectReference:
    """A pod of a trainer; its UID follows from its name."""
    return ObjectReference(name, f"uid-of-{name}")


def attempt(
    state: TrainerState = TrainerState.ABSENT,
    *,
    number: int = 1,
    result: TrainerResult | None = None,
    exit_code: int | None = None,
    message: str = "",
    finished_seconds_ago: float | None = None,
) -> TrainerJob:
    """A trainer pod of the job `step`."""
    name = attempt_name(metadata("step"), number)
    return TrainerJob(
        name=name,
        state=state,
        alive=state is TrainerState.RUNNING,
        uid=None if state is TrainerState.ABSENT else f"uid-of-{name}",
        pod=None if state in (TrainerState.ABSENT, TrainerState.LOST) else trainer_pod(f"{name}-x"),
        result=result,
        exit_code=exit_code,
        message=message,
        finished_at=None if finished_seconds_ago is None else ago(finished_seconds_ago),
    )


def succeeded(number: int = 1, parent: int = 0, *, already_published: bool = False) -> TrainerJob:
    """An attempt that published a version."""
    result = TrainerResult(
        succeeded=True,
        version=published(number, parent=parent),
        already_published=already_published,
        timings=Timings(step=1.0, serving_gap=2.0),
    )
    return attempt(TrainerState.SUCCEEDED, result=result, exit_code=0)


def job_world(
    of: JobObject | None = None,
    *,
    on: AdapterObject | None = None,
    no_adapter: bool = False,
    samples_error: str | None = None,
    input_error: str | None = None,
    sample_fault: SamplesFault | None = None,
    jobs_ahead: int = 0,
    reports: tuple[PublishedVersion, ...] = (),
    unsettled: str | None = None,
    held: ServingLease | None = None,
    now_at: TrainerJob | None = None,
    looked: TrainerJob | None = None,
    alive: bool | None = None,
    pods: tuple[ServerPod, ...] = (vllm_pod(),),
    pods_recorded: tuple[RecordedPod, ...] = (),
    handover: HandoverChoice = SLEEP,
) -> JobWorld:
    """A DistillJob's world; `held` is the lease, by default there is none; `looked` the pod that looks for what the
    attempt left; `reports` are versions that jobs report beside those that the adapter's status lists."""
    current = now_at or attempt()
    trained, mine = on or adapter(), of or job()
    made = mine.status.produced_version
    if made is not None and made not in {each.number for each in trained.status.versions}:
        reports = (*reports, published(made, parent=mine.status.parent_version))
    return JobWorld(
        now=NOW,
        job=mine,
        adapter=None if no_adapter else trained,
        samples_error=samples_error,
        input_error=input_error,
        sample_fault=sample_fault,
        jobs_ahead=jobs_ahead,
        lineage=Lineage.of(() if no_adapter else trained.status.versions, () if no_adapter else reports),
        wanted_replicas=len(pods),
        unsettled=unsettled,
        lease=held,
        attempt=current,
        recovery=looked or TrainerJob(name="", state=TrainerState.ABSENT, alive=False),
        attempts_alive=current.alive if alive is None else alive,
        pods=pods,
        recorded=pods_recorded,
        handover=handover,
    )


def adapter_world(
    of: AdapterObject | None = None,
    *,
    claim_found: bool = True,
    secrets: SecretsSeen = NO_FAULTS,
    deployment_found: bool = True,
    pods: tuple[ServerPod, ...] = (),
    init: TrainerJob | None = None,
    held: ServingLease | None = None,
    products: tuple[PublishedVersion, ...] = (),
    rejected: tuple[AdapterVersion, ...] = (),
    running_job: str | None = None,
    companion_current: bool = True,
    handover: HandoverChoice = SLEEP,
    server: ServerTraits | None = None,
    containers: tuple[str, ...] | None = ("vllm",),
    looked: TrainerJob | None = None,
    recorded_as: ServedName | None = None,
    adapters_here: int = 1,
) -> AdapterWorld:
    """A LoraAdapter's world."""
    current = of or adapter()
    name = init_name(current.metadata)
    return AdapterWorld(
        now=NOW,
        adapter=current,
        claim_found=claim_found,
        secrets=secrets,
        deployment_found=deployment_found,
        wanted_replicas=len(pods),
        no_pod="No pod of Deployment vllm is ready: the test says why",
        pods=pods if deployment_found else (),
        init=init or TrainerJob(name=name, state=TrainerState.ABSENT, alive=False),
        lease=held,
        steps_lease=held,
        products=products,
        rejected=rejected,
        running_job=running_job,
        recovery=looked or TrainerJob(name="", state=TrainerState.ABSENT, alive=False),
        companion_current=companion_current,
        handover=handover,
        server=server or ServerTraits(),
        containers=containers,
        served=recorded_as,
        adapters_here=adapters_here,
    )


def lease_world(
    held: Grant | None = None,
    *,
    active: bool = True,
    unaccounted: tuple[JobIdentity, ...] = (),
    alive: tuple[ObjectReference, ...] = (),
    attempts_open: bool = False,
    pods: tuple[RecordedPod, ...] = (recorded(),),
    free: bool = False,
    subject_found: bool = True,
    served: dict[str, ServedRecord] | None = None,
    orphans: tuple[Orphan, ...] = (),
    more_orphans: bool = False,
    moved: frozenset[str] = frozenset(),
) -> LeaseWorld:
    """A serving lease's world, held by `step` unless a grant says otherwise or it is free."""
    record = lease(None if free else held or grant())
    return LeaseWorld(
        now=NOW,
        lease=record.model_copy(update={"served": served or {}}),
        job_active=active,
        unaccounted=unaccounted,
        alive_pods=alive,
        attempts_open=attempts_open,
        pods=() if free else pods,
        subject_found=subject_found,
        orphans=orphans,
        more_orphans=more_orphans,
        moved=moved,
    )
