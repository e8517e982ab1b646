"""What the operator does about a LoraAdapter: tables."""

from __future__ import annotations

from dataclasses import replace

import pytest

from claas_contract.result import TrainerResult
from claas_crds.v1alpha1.conditions import ConditionStatus, condition_of
from claas_crds.v1alpha1.lora import LoraSpec
from claas_crds.v1alpha1.lora_adapter import ReplicaState
from claas_crds.v1alpha1.serving import HandoverKind
from claas_crds.v1alpha1.version import HISTORY_LIMIT
from claas_kube.objects.resources import AdapterObject
from claas_operator.plan.actions import (
    ApplyCompanion,
    CreateInit,
    DeleteAttempt,
    PutInService,
    VerifyServed,
    WriteLease,
    WriteServedName,
)
from claas_operator.plan.adapter.adapter import AdapterPlan, plan_adapter
from claas_operator.plan.adapter.initial import INIT_RETRY_SECONDS
from claas_operator.plan.server.handover_choice import HandoverChoice
from claas_operator.plan.server.load_failures import LoadFailure
from claas_operator.plan.server.traits import ServerTraits
from claas_operator.plan.serving_lease import ServedName, ServedRecord
from claas_operator.plan.world import AdapterWorld, SecretsSeen, ServerState, TrainerState
from tests.builders.world import (
    ASLEEP,
    MOUNTED,
    NAMESPACE,
    NOW,
    REFUSED,
    UNREACHABLE,
    adapter,
    adapter_world,
    ago,
    attempt,
    grant,
    lease,
    published,
    serves,
    vllm_pod,
)

NEW = adapter(versions=(), served=None)


def said(plan: AdapterPlan, kind: str) -> tuple[ConditionStatus, str]:
    found = condition_of(plan.status.conditions, kind)
    assert found is not None, f"no condition {kind}"
    return found.status, found.reason


def put_into(plan: AdapterPlan) -> list[tuple[str, int]]:
    return [(action.pod.name, action.version) for action in plan.actions if isinstance(action, PutInService)]


FAILED_INIT = attempt(TrainerState.FAILED, exit_code=1, finished_seconds_ago=1)

MISCONFIGURED = "ServerMisconfigured"
BASE = ServerState(reachable=True, base_models=("base",))
OTHER_BASE = ServerState(reachable=True, base_models=("other", "more"))

NOT_READY: list[tuple[str, AdapterWorld, str, bool]] = [
    ("its claim is missing", adapter_world(claim_found=False), "StorageNotFound", True),
    ("a Secret is missing", adapter_world(secrets=SecretsSeen(missing=("a/token",))), "SecretNotFound", True),
    ("a Secret is no token", adapter_world(secrets=SecretsSeen(invalid=("x",))), "SecretInvalid", True),
    (
        "a token that changed a moment ago is refused",
        adapter_world(pods=(vllm_pod(server=REFUSED),), secrets=SecretsSeen(changed=ago(60))),
        "ControlRefused",
        False,
    ),
    (
        "a token that changed long ago is refused",
        adapter_world(pods=(vllm_pod(server=REFUSED),), secrets=SecretsSeen(changed=ago(200))),
        "ControlRefused",
        True,
    ),
    ("its Deployment is missing", adapter_world(deployment_found=False), "DeploymentNotFound", True),
    ("a pod does not mount its claim", adapter_world(pods=(vllm_pod(mounted=False),)), "StorageNotMounted", True),
    (
        "the container that it names is not there",
        adapter_world(adapter(serving={"container": "other"}), pods=(vllm_pod(mounted=False),)),
        "ContainerNotFound",
        True,
    ),
    ("vLLM takes no adapters", adapter_world(NEW, server=ServerTraits(lora_enabled=False)), MISCONFIGURED, True),
    ("its rank is too large", adapter_world(NEW, server=ServerTraits(max_lora_rank=16)), MISCONFIGURED, True),
    ("vLLM loads nothing", adapter_world(NEW, server=ServerTraits(loads_adapters=False)), MISCONFIGURED, True),
    ("vLLM serves another model", adapter_world(NEW, pods=(vllm_pod(server=OTHER_BASE),)), MISCONFIGURED, True),
    (
        "the flags tell another model",
        adapter_world(NEW, server=ServerTraits(served_model_names=("other",))),
        MISCONFIGURED,
        True,
    ),
    (
        "it has the name of the base model",
        adapter_world(adapter(versions=(), serving={"servedName": "base"}), pods=(vllm_pod(server=BASE),)),
        MISCONFIGURED,
        True,
    ),
    ("a new one's token is refused", adapter_world(NEW, pods=(vllm_pod(server=REFUSED),)), "ControlRefused", True),
    ("the control token is refused", adapter_world(pods=(vllm_pod(server=REFUSED),)), "ControlRefused", True),
    ("its first version failed", adapter_world(NEW, init=FAILED_INIT), "InitialisationFailed", True),
    (
        "its first version was not reported",
        adapter_world(NEW, init=attempt(TrainerState.SUCCEEDED, exit_code=0, finished_seconds_ago=1)),
        "InitialisationFailed",
        True,
    ),
    ("its first version is being made", adapter_world(NEW), "Initialising", False),
    ("it has no pods", adapter_world(), "NoReadyPods", False),
    ("no pod is ready", adapter_world(pods=(vllm_pod(ready=False),)), "NoReadyPods", False),
    ("a server does not answer", adapter_world(pods=(vllm_pod(server=UNREACHABLE),)), "VllmUnreachable", False),
    (
        "a server sleeps and no step is taken",
        adapter_world(pods=(vllm_pod(server=serves(0, asleep=True)),)),
        "Asleep",
        False,
    ),
    (
        "a pod sleeps and the step beside it has not paused it",
        adapter_world(
            pods=(vllm_pod(server=serves(0, asleep=True)),), held=lease(grant(handover=HandoverKind.SHARE))
        ),
        "Asleep",
        False,
    ),
    ("a version is not loaded yet", adapter_world(pods=(vllm_pod(server=serves(None)),)), "Loading", False),
    (
        "a version is loaded and not applied",
        adapter_world(
            pods=(
                replace(
                    vllm_pod(server=replace(serves(0), verified=False)),
                    load_failure=LoadFailure(0, 1, "the base answers", 1, NOW, not_applied=True),
                ),
            )
        ),
        "AdapterNotApplied",
        False,
    ),
    (
        "a version could not be loaded",
        adapter_world(pods=(vllm_pod(server=serves(None), load_error="refused"),)),
        "LoadFailed",
        False,
    ),
]


@pytest.mark.parametrize(
    ("world", "reason", "stalled"), [row[1:] for row in NOT_READY], ids=[row[0] for row in NOT_READY]
)
def test_an_adapter_is_not_ready_when(world: AdapterWorld, reason: str, stalled: bool) -> None:
    plan = plan_adapter(world)
    assert said(plan, "Ready") == (ConditionStatus.FALSE, reason)
    assert said(plan, "Stalled")[0] is (ConditionStatus.TRUE if stalled else ConditionStatus.FALSE)
    assert said(plan, "Reconciling")[0] is (ConditionStatus.FALSE if stalled else ConditionStatus.TRUE)
    assert plan.requeue_seconds is not None, "it heals when it can"


@pytest.mark.parametrize(
    "choice", [HandoverChoice(HandoverKind.SHARE, "flags"), HandoverChoice(None, "add a flag")], ids=["share", "none"]
)
def test_an_adapter_tells_its_hand_over_and_why_it_is_that(choice: HandoverChoice) -> None:
    plan = plan_adapter(adapter_world(pods=(vllm_pod(server=serves(0)),), handover=choice))
    assert (plan.status.handover, plan.status.handover_message) == (choice.kind, choice.message)
    # An adapter without one is served all the same.
    assert said(plan, "Ready") == (ConditionStatus.TRUE, "Serving")


READY: list[tuple[str, AdapterWorld, str]] = [
    ("every pod serves the version", adapter_world(pods=(vllm_pod(server=serves(0)),)), "Serving"),
    (
        "a step has paused it",
        adapter_world(pods=(vllm_pod(server=serves(0, asleep=True)),), held=lease(grant()), running_job="step"),
        "Training",
    ),
    (
        "another adapter's step has paused it",
        adapter_world(pods=(vllm_pod(server=serves(0, asleep=True)),), held=lease(grant("other"))),
        "Training",
    ),
    (
        "its step goes on while it serves",
        adapter_world(pods=(vllm_pod(server=serves(0)),), held=lease(grant()), running_job="step"),
        "Training",
    ),
    (
        "one pod serves and another is not ready yet",
        adapter_world(pods=(vllm_pod(server=serves(0)), vllm_pod("b", ready=False))),
        "Serving",
    ),
]


@pytest.mark.parametrize(("world", "reason"), [row[1:] for row in READY], ids=[row[0] for row in READY])
def test_an_adapter_is_ready_when(world: AdapterWorld, reason: str) -> None:
    plan = plan_adapter(world)
    assert said(plan, "Ready") == (ConditionStatus.TRUE, reason)
    assert said(plan, "Stalled")[0] is ConditionStatus.FALSE
    assert said(plan, "Reconciling")[0] is ConditionStatus.FALSE


def test_a_new_adapter_makes_its_first_version_and_brings_the_companion() -> None:
    plan = plan_adapter(adapter_world(NEW, companion_current=False))
    assert [type(action) for action in plan.actions] == [ApplyCompanion, CreateInit]


@pytest.mark.parametrize(
    "world",
    [
        adapter_world(NEW, claim_found=False),
        adapter_world(NEW, secrets=SecretsSeen(missing=("hub/token",))),
        adapter_world(NEW, init=attempt(TrainerState.RUNNING)),
        adapter_world(NEW, init=replace(attempt(), alive=True)),
        adapter_world(NEW, init=FAILED_INIT),
        adapter_world(adapter(versions=(0,))),
    ],
    ids=["no-claim", "no-secret", "it-runs", "the-last-one-is-ending", "it-failed-just-now", "there-is-one"],
)
def test_no_first_version_is_begun(world: AdapterWorld) -> None:
    assert not any(isinstance(action, CreateInit | DeleteAttempt) for action in plan_adapter(world).actions)


@pytest.mark.parametrize("state", [TrainerState.FAILED, TrainerState.LOST, TrainerState.SUCCEEDED])
def test_a_first_version_that_failed_is_tried_again_after_a_while(state: TrainerState) -> None:
    ended = attempt(state, exit_code=0, finished_seconds_ago=INIT_RETRY_SECONDS + 1)
    (action,) = plan_adapter(adapter_world(NEW, init=ended)).actions
    assert isinstance(action, DeleteAttempt)


def test_the_first_version_is_taken_from_the_trainers_result_and_loaded() -> None:
    result = TrainerResult(succeeded=True, version=published(4, job=None))
    init = attempt(TrainerState.SUCCEEDED, result=result, exit_code=0)
    plan = plan_adapter(adapter_world(NEW, init=init, pods=(vllm_pod(server=serves(None)),)))
    assert plan.status.latest_version == 4
    assert put_into(plan) == [("vllm-0", 4)]


def test_versions_of_jobs_are_added_once_and_the_oldest_are_dropped() -> None:
    products = tuple(published(number) for number in range(1, HISTORY_LIMIT + 5))
    plan = plan_adapter(adapter_world(products=(*products, *products)))
    numbers = [version.number for version in plan.status.versions]
    assert numbers == list(range(5, HISTORY_LIMIT + 5))
    assert plan.status.latest_version == HISTORY_LIMIT + 4


def test_what_is_served_is_written_down_before_it_is_loaded() -> None:
    plan = plan_adapter(adapter_world(pods=(vllm_pod(server=serves(None)),)))
    write, lease_, load = plan.actions
    assert isinstance(write, WriteServedName)
    assert (write.served.served_name, write.served.record.adapter_uid) == ("tone", "uid-of-tone")
    assert write.served.resource_version is None
    # Whoever takes names out of service looks at the Lease.
    assert isinstance(lease_, WriteLease)
    assert isinstance(load, PutInService)
    assert load.path == f"{MOUNTED}/versions/0"
    pods = (vllm_pod(server=serves(None)),)
    again = plan_adapter(adapter_world(pods=pods, held=lease_.lease, recorded_as=write.served))
    assert [type(action) for action in again.actions] == [PutInService]


def test_a_record_that_is_of_another_adapter_or_port_is_replaced_as_it_was_seen() -> None:
    other = ServedRecord(adapter_name="tone", adapter_uid="uid-of-an-earlier-one", port=8000)
    seen = ServedName(
        namespace=NAMESPACE, deployment="vllm", served_name="tone", record=other, uid="u", resource_version="41"
    )
    plan = plan_adapter(adapter_world(pods=(vllm_pod(server=serves(0)),), held=lease(), recorded_as=seen))
    (write,) = plan.actions
    assert isinstance(write, WriteServedName)
    assert (write.served.resource_version, write.served.record.adapter_uid) == ("41", "uid-of-tone")


def test_the_newest_version_is_put_into_every_pod_that_can_take_it() -> None:
    pods = (
        vllm_pod("serves-old", server=serves(0)),
        vllm_pod("serves-none", server=serves(None)),
        vllm_pod("serves-it", server=serves(1)),
        vllm_pod("sleeps", server=serves(0, asleep=True)),
        vllm_pod("is-silent", server=UNREACHABLE),
        vllm_pod("refuses", server=REFUSED),
        vllm_pod("is-not-ready", ready=False),
        vllm_pod("has-no-volume", server=serves(None), mounted=False),
    )
    plan = plan_adapter(adapter_world(adapter(versions=(0, 1)), pods=pods))
    assert put_into(plan) == [("serves-old", 1), ("serves-none", 1)]


def test_a_version_that_nobody_has_seen_to_answer_since_a_wake_is_verified() -> None:
    doubted = replace(serves(1), verified=False)
    pods = (
        vllm_pod("doubted", server=doubted),
        vllm_pod("seen", server=serves(1)),
        vllm_pod("sleeps", server=replace(doubted, asleep=True)),
        vllm_pod("serves-old", server=replace(serves(0), verified=False)),
    )
    plan = plan_adapter(adapter_world(adapter(versions=(0, 1)), pods=pods))
    assert [action.pod.name for action in plan.actions if isinstance(action, VerifyServed)] == ["doubted"]
    assert put_into(plan) == [("serves-old", 1)]


def test_a_version_of_the_same_number_from_another_path_is_replaced() -> None:
    elsewhere = replace(serves(0), loaded_path="/mnt/elsewhere/versions/0")
    assert put_into(plan_adapter(adapter_world(pods=(vllm_pod(server=elsewhere),)))) == [("vllm-0", 0)]


def test_while_a_step_runs_its_trainer_decides_but_a_pod_that_serves_nothing_is_helped() -> None:
    pods = (vllm_pod("ahead", server=serves(1)), vllm_pod("restarted", server=serves(None)))
    plan = plan_adapter(adapter_world(pods=pods, held=lease(grant()), running_job="step"))
    assert put_into(plan) == [("restarted", 0)]
    assert plan.status.current_job == "step"


def test_replicas_are_told_apart_and_counted() -> None:
    pods = (
        vllm_pod("a", server=serves(0)),
        vllm_pod("b", server=replace(serves(0), asleep=True)),
        vllm_pod("c", server=UNREACHABLE),
        vllm_pod("d", ready=False),
        vllm_pod("e", server=serves(None)),
    )
    plan = plan_adapter(adapter_world(pods=pods))
    assert [replica.state for replica in plan.status.replicas] == [
        ReplicaState.SERVING,
        ReplicaState.ASLEEP,
        ReplicaState.UNREACHABLE,
        ReplicaState.NOT_READY,
        ReplicaState.LOADING,
    ]
    assert plan.status.ready_replicas == "1/5"
    assert plan.status.served_version == 0, "while pods differ, what was said before stays"


@pytest.mark.parametrize(
    ("server", "status", "reason", "within"),
    [
        (serves(0), ConditionStatus.TRUE, "CompanionFound", "answers in every pod"),
        (serves(0, companion=False), ConditionStatus.FALSE, "CompanionMissing", "control routes are open"),
        (serves(0, persisted=False), ConditionStatus.TRUE, "CompanionFound", "can't write its alias folder"),
        (UNREACHABLE, ConditionStatus.UNKNOWN, "Pending", "No vLLM pod has answered"),
        (REFUSED, ConditionStatus.UNKNOWN, "ControlRefused", "the control token is wrong"),
    ],
    ids=["there", "missing", "forgetful", "unknown", "refusing"],
)
def test_the_companion_is(server: ServerState, status: ConditionStatus, reason: str, within: str) -> None:
    plan = plan_adapter(adapter_world(pods=(vllm_pod(server=server),)))
    assert said(plan, "CompanionReady") == (status, reason)
    found = condition_of(plan.status.conditions, "CompanionReady")
    assert found is not None
    assert within in found.message


def test_a_change_is_told_by_one_event() -> None:
    first = plan_adapter(adapter_world(pods=(vllm_pod(server=serves(0)),)))
    assert [note.reason for note in first.notes] == ["Serving"]
    same = adapter(conditions=tuple(first.status.conditions))
    assert plan_adapter(adapter_world(same, pods=(vllm_pod(server=serves(0)),))).notes == ()
    asleep = plan_adapter(adapter_world(same, pods=(vllm_pod(server=ASLEEP),)))
    assert "Asleep" in [note.reason for note in asleep.notes]


def of_modules(*names: str) -> AdapterObject:
    """A new adapter of some layers."""
    spec = NEW.spec.model_copy(update={"lora": LoraSpec(target_modules=list(names))})
    return NEW.model_copy(update={"spec": spec})


@pytest.mark.parametrize(
    ("world", "named"),
    [
        (adapter_world(NEW, server=ServerTraits(max_lora_rank=16)), ("spec.lora.rank is 32", "--max-lora-rank 32")),
        (adapter_world(NEW, server=ServerTraits(lora_enabled=False)), ("--enable-lora",)),
        (adapter_world(NEW, server=ServerTraits(loads_adapters=False)), ("VLLM_ALLOW_RUNTIME_LORA_UPDATING=1",)),
        (
            adapter_world(
                of_modules("q_proj", "o_proj", "lin"), server=ServerTraits(lora_modules=("qkv_proj", "lin"))
            ),
            ("qkv_proj, lin alone", "not to o_proj of spec.lora.targetModules", "--lora-target-modules"),
        ),
        (adapter_world(NEW, server=ServerTraits(tls=True)), ("--ssl-certfile", "spec.serving.scheme to https")),
        (
            adapter_world(NEW, pods=(vllm_pod(server=OTHER_BASE),)),
            ("spec.model.name is base", "other, more", "--served-model-name base"),
        ),
        (
            adapter_world(adapter(versions=(), serving={"servedName": "base"}), pods=(vllm_pod(server=BASE),)),
            ("spec.serving.servedName",),
        ),
        (adapter_world(adapter(serving={"container": "x"}), containers=("a", "b")), ("container x", "a, b")),
    ],
)
def test_what_is_wrong_with_the_server_is_told_by_flag_and_value_before_anything_is_made(
    world: AdapterWorld, named: tuple[str, ...]
) -> None:
    plan = plan_adapter(world)
    ready = condition_of(plan.status.conditions, "Ready")
    assert ready is not None
    for text in named:
        assert text in ready.message
    assert not any(isinstance(action, (CreateInit, PutInService)) for action in plan.actions)


@pytest.mark.parametrize(
    "server",
    [
        ServerTraits(),
        ServerTraits(lora_modules=()),
        ServerTraits(tls=True),
        ServerTraits(lora_modules=("o_proj",)),
        ServerTraits(lora_enabled=True, max_lora_rank=32, loads_adapters=True, served_model_names=("x", "base")),
    ],
)
def test_a_server_that_fits_or_is_not_known_holds_nothing_up(server: ServerTraits) -> None:
    plan = plan_adapter(adapter_world(NEW, pods=(vllm_pod(server=BASE),), server=server))
    assert any(isinstance(action, CreateInit) for action in plan.actions)


def test_what_serves_the_adapter_is_not_called_unfit_for_it() -> None:
    world = adapter_world(pods=(vllm_pod(server=serves(0)),), server=ServerTraits(max_lora_rank=8))
    assert said(plan_adapter(world), "Ready") == (ConditionStatus.TRUE, "Serving")


@pytest.mark.parametrize(("slots", "told"), [(1, True), (2, False), (None, False)])
def test_a_swap_that_has_no_slot_of_its_own_is_told_with_the_number_needed(slots: int | None, told: bool) -> None:
    world = adapter_world(pods=(vllm_pod(server=serves(0)),), server=ServerTraits(max_loras=slots))
    ready = condition_of(plan_adapter(world).status.conditions, "Ready")
    assert ready is not None
    assert ("--max-loras 2" in ready.message) is told


def test_what_is_served_over_tls_is_recorded_with_how_it_is_verified() -> None:
    of = adapter(serving={"scheme": "https", "tls": {"serverName": "vllm.team.svc"}})
    (written,) = [a for a in plan_adapter(adapter_world(of)).actions if isinstance(a, WriteServedName)]
    record = written.served.record
    assert (record.scheme, record.tls) == ("https", of.spec.serving.tls)


def test_served_has_the_reason_of_ready_whatever_is_wrong() -> None:
    for world in (
        adapter_world(claim_found=False),
        adapter_world(deployment_found=False),
        adapter_world(pods=(vllm_pod(ready=False),)),
        adapter_world(pods=(vllm_pod(server=serves(0)),)),
        adapter_world(pods=(vllm_pod(server=UNREACHABLE),)),
    ):
        conditions = plan_adapter(world).status.conditions
        ready, served = (condition_of(conditions, kind) for kind in ("Ready", "Served"))
        assert ready is not None
        assert served is not None
        assert (served.reason, served.message) == (ready.reason, ready.message)


def test_an_adapter_whose_name_is_taken_does_not_show_the_others_version() -> None:
    world = adapter_world(adapter(served=0), pods=(vllm_pod(server=serves(7)),))
    status = plan_adapter(replace(world, name_taken_by="older")).status
    assert status.served_version is None
    assert [replica.version for replica in status.replicas] == [None]
    assert status.ready_replicas == "0/1"
    served = condition_of(status.conditions, "Served")
    assert served is not None
    assert (served.status, served.reason) == (ConditionStatus.FALSE, "ServedNameTaken")


def test_a_version_from_another_folder_is_not_the_adapters_own() -> None:
    other = ServerState(reachable=True, loaded_version=0, loaded_path="/mnt/adapters/team/other/versions/0")
    plan = plan_adapter(adapter_world(pods=(vllm_pod(server=other),)))
    assert [(replica.version, replica.state) for replica in plan.status.replicas] == [(None, "Loading")]
    assert any(isinstance(action, PutInService) for action in plan.actions)
