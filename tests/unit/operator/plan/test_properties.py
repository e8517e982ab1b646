"""What holds of every plan, whatever the world: safety of serving, exactly once, valid conditions, no surprises."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from claas_contract.outcome import FailureReason
from claas_contract.result import TrainerResult
from claas_crds.v1alpha1.conditions import Condition, ConditionStatus
from claas_crds.v1alpha1.distill_job import DistillJobStatus
from claas_crds.v1alpha1.serving import HandoverKind
from claas_crds.v1alpha1.step import JobPhase
from claas_kube.objects.resources import AdapterObject, JobObject
from claas_operator.plan.actions import (
    CreateAttempt,
    CreateInit,
    DeleteLease,
    KillTrainer,
    PutInService,
    TakeOutOfService,
    WakePods,
    WriteLease,
)
from claas_operator.plan.adapter.adapter import plan_adapter
from claas_operator.plan.engine.places import Places
from claas_operator.plan.job.job import plan_job
from claas_operator.plan.lease import plan_lease
from claas_operator.plan.lineage.lineage import Lineage
from claas_operator.plan.queueing import finished
from claas_operator.plan.samples import SamplesFault
from claas_operator.plan.server.handover_choice import HandoverChoice
from claas_operator.plan.serving_lease import Grant, ServedName, ServedRecord, ServingLease
from claas_operator.plan.world import (
    AdapterWorld,
    JobWorld,
    LeaseWorld,
    Orphan,
    RecordedPod,
    SecretsSeen,
    ServerState,
    TrainerJob,
    TrainerState,
)
from tests.builders.world import (
    MOUNTED,
    NOW,
    adapter,
    ago,
    attempt,
    condition,
    grant,
    identity,
    job,
    lease,
    published,
    target,
    trainer_pod,
    version,
    vllm_pod,
)

PODS = ("vllm-0", "vllm-1", "vllm-2")
times = st.none() | st.integers(0, 400).map(ago)
CHOICES = (HandoverKind.SLEEP, HandoverKind.SHARE, HandoverKind.NONE, None)
few = settings(max_examples=60, deadline=None)

numbers = st.none() | st.integers(0, 4)
servers = st.none() | st.builds(
    lambda reachable, refused, asleep, number, companion: ServerState(
        reachable=reachable,
        refused=refused,
        asleep=asleep,
        loaded_version=number,
        loaded_path=None if number is None else f"{MOUNTED}/versions/{number}",
        companion=companion,
    ),
    *(st.booleans(), st.booleans(), st.booleans(), numbers, st.booleans()),
)
serving_pods = st.builds(
    lambda name, server, ready, mounted, error: vllm_pod(
        name, server=server, ready=ready, mounted=mounted, load_error=error
    ),
    *(st.sampled_from(PODS), servers, st.booleans(), st.booleans(), st.none() | st.just("no")),
)
pod_tuples = st.lists(serving_pods, max_size=3, unique_by=lambda pod: pod.name).map(tuple)
recorded_pods = st.builds(RecordedPod, target=st.sampled_from(PODS).map(target), exists=st.booleans(), server=servers)
grants = st.builds(
    lambda holder, number, since, stopped: grant(
        holder, attempt=number, pods=PODS, asleep_since=since, stopped_because=stopped
    ),
    *(st.sampled_from(["step", "other"]), st.integers(1, 4), times, st.none() | st.just("MaxPauseExceeded")),
)
results = st.none() | st.builds(
    lambda good, reason, number: TrainerResult(
        succeeded=good,
        reason=None if good else reason,
        message="said",
        version=published(number, parent=0) if good else None,
    ),
    *(st.booleans(), st.none() | st.sampled_from(FailureReason), st.integers(0, 4)),
)
attempts = st.builds(
    lambda state, number, result, code, message, alive: TrainerJob(
        name=attempt(number=number).name,
        state=state,
        alive=alive,
        pod=None if state is TrainerState.ABSENT else trainer_pod("pod"),
        result=result,
        exit_code=code,
        message=message,
        finished_at=ago(50),
    ),
    st.sampled_from(TrainerState),
    st.integers(1, 4),
    results,
    st.none() | st.sampled_from([0, 1, 64, 75, 137]),
    st.sampled_from(["", "OOMKilled", "Evicted"]),
    st.booleans(),
)
holding = st.sampled_from([True, False, None])


def conditions(*kinds: str) -> st.SearchStrategy[list[Condition]]:
    made = [st.none() | st.builds(condition, st.just(kind), holding) for kind in kinds]
    return st.tuples(*made).map(lambda found: [each for each in found if each is not None])


job_statuses = st.builds(
    lambda said, phase, tried, failures, produced, start, retry: DistillJobStatus(
        conditions=said,
        phase=phase,
        attempts=tried,
        failed_attempts=min(failures, tried),
        produced_version=produced,
        start_time=start,
        retry_time=retry,
    ),
    conditions("Complete", "Failed", "Suspended", "Admitted", "Trained", "Served"),
    st.none() | st.sampled_from(JobPhase),
    *(st.integers(0, 4), st.integers(0, 4), numbers, times, times),
)
jobs = st.builds(
    lambda status, age, suspend, limit, deadline, ttl: job(
        status=status,
        age_seconds=age,
        suspend=suspend,
        backoff_limit=limit,
        deadline_seconds=deadline,
        ttl_seconds=ttl,
    ),
    job_statuses,
    *(st.integers(0, 100), st.booleans(), st.integers(0, 3), st.integers(1, 300), numbers),
)
adapters = st.builds(
    lambda versions, served, said, deleted: adapter(
        versions=tuple(versions), served=served, conditions=tuple(said), deleted=deleted
    ),
    *(
        st.lists(st.integers(0, 4), unique=True, max_size=3),
        numbers,
        conditions("Ready", "Stalled", "CompanionReady"),
    ),
    st.booleans(),
)
leases = st.none() | st.builds(lease, st.none() | grants)
messages = st.none() | st.just("a message")
lineages = st.builds(
    Lineage.of,
    st.lists(st.builds(version, st.integers(0, 4), parent=numbers), unique_by=lambda each: each.number, max_size=4),
    st.lists(st.builds(published, st.integers(0, 4), parent=numbers), max_size=4),
    st.lists(st.builds(version, st.integers(0, 4), parent=numbers), max_size=2),
)
job_worlds = st.builds(
    JobWorld,
    now=st.just(NOW),
    job=jobs,
    adapter=st.none() | adapters,
    samples_error=messages,
    input_error=messages,
    sample_fault=st.none() | st.just(SamplesFault("a message")),
    jobs_ahead=st.integers(0, 3),
    lineage=lineages,
    wanted_replicas=st.integers(0, 2),
    unsettled=messages,
    lease=leases,
    attempt=attempts,
    recovery=attempts,
    attempts_alive=st.booleans(),
    pods=pod_tuples,
    recorded=st.lists(recorded_pods, max_size=3).map(tuple),
    handover=st.builds(HandoverChoice, st.sampled_from(CHOICES), st.just("said")),
    places=st.none() | st.builds(Places, st.integers(1, 3), st.integers(0, 3), st.integers(0, 3)),
)
adapter_worlds = st.builds(
    AdapterWorld,
    now=st.just(NOW),
    adapter=adapters,
    claim_found=st.booleans(),
    secrets=st.sampled_from([SecretsSeen(), SecretsSeen(missing=("a/token",)), SecretsSeen(invalid=("x",))]),
    deployment_found=st.booleans(),
    wanted_replicas=st.integers(0, 3),
    pods=pod_tuples,
    init=attempts,
    lease=leases,
    steps_lease=leases,
    products=st.lists(st.integers(0, 30).map(published), max_size=25).map(tuple),
    rejected=st.lists(st.integers(0, 30).map(version), max_size=25).map(tuple),
    running_job=st.none() | st.just("step"),
    recovery=attempts,
    companion_current=st.booleans(),
)
RECORD = ServedRecord(adapter_name="gone", adapter_uid="uid-of-gone", port=8000)
served_names = st.builds(
    ServedName,
    namespace=st.just("team"),
    deployment=st.just("vllm"),
    served_name=st.sampled_from(["gone", "lost"]),
    record=st.just(RECORD),
)
orphans = st.builds(Orphan, served=served_names, pods=pod_tuples)
lease_worlds = st.builds(
    LeaseWorld,
    now=st.just(NOW),
    lease=st.builds(
        lambda found, old: found.model_copy(update={"served": old}),
        st.builds(lease, st.none() | grants),
        st.sampled_from([{}, {"gone": RECORD}]),
    ),
    job_active=st.booleans(),
    unaccounted=st.lists(st.sampled_from([identity(), identity("other")]), unique_by=lambda job: job.uid).map(tuple),
    alive_pods=st.sampled_from([(), (trainer_pod("t"),), (trainer_pod("t"), trainer_pod("u"))]),
    attempts_open=st.booleans(),
    pods=st.lists(recorded_pods, max_size=3).map(tuple),
    subject_found=st.booleans(),
    orphans=st.lists(orphans, max_size=2, unique_by=lambda orphan: orphan.served.served_name).map(tuple),
)


def released(before: ServingLease, actions: tuple[object, ...]) -> bool:
    """Whether a plan takes the lease from its holder."""
    if before.grant is None:
        return False
    return any(
        isinstance(action, DeleteLease) or (isinstance(action, WriteLease) and action.lease.holder != before.holder)
        for action in actions
    )


@few
@given(world=lease_worlds)
def test_no_lease_is_released_while_a_trainer_may_run_or_a_pod_may_be_asleep(world: LeaseWorld) -> None:
    actions = plan_lease(world).actions
    if world.alive_pods or world.attempts_open or world.job_active or not all(pod.settled for pod in world.pods):
        assert not released(world.lease, actions)


@few
@given(world=lease_worlds)
def test_only_sleeping_pods_that_the_world_recorded_are_woken_and_only_when_no_trainer_lives(
    world: LeaseWorld,
) -> None:
    for action in plan_lease(world).actions:
        if isinstance(action, WakePods):
            assert not world.alive_pods
            assert set(action.pods) <= {pod.target for pod in world.pods if pod.asleep}


@few
@given(world=lease_worlds)
def test_a_trainer_is_killed_only_when_that_was_written_down_before(world: LeaseWorld) -> None:
    killed = [action for action in plan_lease(world).actions if isinstance(action, KillTrainer)]
    held = world.lease.grant
    if killed:
        assert held is not None
        assert held.stopped_because is not None


@few
@given(world=lease_worlds)
def test_nothing_is_taken_out_of_service_under_a_step(world: LeaseWorld) -> None:
    if world.lease.grant is not None:
        assert not any(isinstance(action, TakeOutOfService | DeleteLease) for action in plan_lease(world).actions)


@few
@given(world=lease_worlds)
def test_a_held_lease_is_looked_at_again(world: LeaseWorld) -> None:
    if world.lease.grant is not None:
        assert plan_lease(world).requeue_seconds is not None


@few
@given(world=job_worlds)
def test_no_attempt_is_made_without_the_lease_or_beside_another_or_after_the_version(world: JobWorld) -> None:
    made = [action for action in plan_job(world).actions if isinstance(action, CreateAttempt)]
    if made:
        (action,) = made
        assert world.lease is not None
        assert world.lease.holder == world.job.metadata.uid
        assert action.grant == world.lease.grant
        assert action.grant.attempt_of(world.job.metadata.uid) is not None
        assert world.attempt.state is TrainerState.ABSENT
        assert not world.attempts_alive
        assert world.job.status.produced_version is None
        assert not world.job.spec.suspend
        assert not finished(world.job.status.conditions)


@few
@given(world=job_worlds)
def test_a_lease_is_taken_only_when_it_is_free_or_ones_own_and_by_the_first_in_line(world: JobWorld) -> None:
    for action in plan_job(world).actions:
        if isinstance(action, WriteLease):
            assert action.lease.holder == world.job.metadata.uid
            free = world.lease is None or world.lease.grant is None
            mine = world.lease is not None and world.lease.holder == world.job.metadata.uid
            assert mine or (free and world.jobs_ahead == 0 and (world.places is None or world.places.free))
            assert world.handover.kind is not None
            if world.handover.kind is HandoverKind.SLEEP:
                assert not any(pod.server is not None and pod.server.asleep for pod in world.pods)
            assert action.lease.resource_version == (world.lease.resource_version if world.lease else None)


@few
@given(world=job_worlds)
def test_a_finished_job_stays_as_it_is_and_begins_nothing(world: JobWorld) -> None:
    if finished(world.job.status.conditions):
        plan = plan_job(world)
        assert not any(isinstance(action, CreateAttempt | WriteLease) for action in plan.actions)
        assert plan.status.conditions == world.job.status.conditions
        assert plan.notes == ()


@few
@given(world=job_worlds)
def test_a_job_that_is_not_done_is_looked_at_again_or_waits_for_its_user(world: JobWorld) -> None:
    plan = plan_job(world)
    if not finished(plan.status.conditions) and plan.requeue_seconds is None:
        assert plan.status.phase is JobPhase.SUSPENDED


@few
@given(world=job_worlds)
def test_a_job_never_counts_backwards_and_never_forgets_a_version(world: JobWorld) -> None:
    before, after = world.job.status, plan_job(world).status
    assert after.failed_attempts >= before.failed_attempts
    if before.produced_version is not None:
        assert after.produced_version == before.produced_version
    assert after.failed_attempts - before.failed_attempts <= 1


@few
@given(world=adapter_worlds)
def test_only_awake_servers_that_see_the_volume_are_given_the_newest_version(world: AdapterWorld) -> None:
    plan = plan_adapter(world)
    for action in plan.actions:
        if isinstance(action, PutInService):
            assert action.version == plan.status.latest_version
            assert action.version not in {each.number for each in world.rejected}
            assert action.pod.storage_path is not None
            server = action.pod.server
            assert server is not None
            assert server.reachable
            assert not server.asleep
            assert not server.refused


@few
@given(world=adapter_worlds)
def test_the_first_version_is_made_only_when_there_is_none_and_nothing_makes_one(world: AdapterWorld) -> None:
    plan = plan_adapter(world)
    if any(isinstance(action, CreateInit) for action in plan.actions):
        assert plan.status.latest_version is None
        assert world.init.state is TrainerState.ABSENT
        assert not world.init.alive


@few
@given(world=adapter_worlds)
def test_ready_stalled_and_reconciling_exclude_each_other(world: AdapterWorld) -> None:
    said = {each.type: each.status for each in plan_adapter(world).status.conditions}
    true = [kind for kind in ("Ready", "Reconciling", "Stalled") if said[kind] is ConditionStatus.TRUE]
    assert len(true) == 1


@few
@given(world=adapter_worlds)
def test_an_adapter_writes_to_the_lease_without_touching_its_grant(world: AdapterWorld) -> None:
    held: Grant | None = world.lease.grant if world.lease else None
    for action in plan_adapter(world).actions:
        if isinstance(action, WriteLease):
            assert action.lease.grant == held


@few
@given(a=adapter_worlds, j=job_worlds, k=lease_worlds)
def test_plans_are_pure_and_write_what_the_schema_takes(a: AdapterWorld, j: JobWorld, k: LeaseWorld) -> None:
    assert plan_adapter(a) == plan_adapter(a)
    assert plan_job(j) == plan_job(j)
    assert plan_lease(k) == plan_lease(k)
    written_adapter = AdapterObject(metadata=a.adapter.metadata, spec=a.adapter.spec, status=plan_adapter(a).status)
    written_job = JobObject(metadata=j.job.metadata, spec=j.job.spec, status=plan_job(j).status)
    for written in (written_adapter, written_job):
        again = type(written).model_validate_json(written.model_dump_json(by_alias=True, exclude_none=True))
        for each in again.status.conditions:
            assert each.last_transition_time <= NOW
