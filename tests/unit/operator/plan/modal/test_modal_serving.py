"""Servers on Modal: what is asked next, and what an adapter's status says of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.conditions import AdapterCondition, AdapterReason, ConditionStatus, condition_of
from claas_crds.v1alpha1.distill_job import DistillJobStatus
from claas_crds.v1alpha1.lora_adapter import ReplicaState
from claas_crds.v1alpha1.serving import HandoverKind
from claas_crds.v1alpha1.step import JobPhase
from claas_crds.v1alpha1.version import VersionVerdict
from claas_kube.objects.workloads import Lease
from claas_operator.plan.actions import (
    Action,
    ApplyCompanion,
    ConfirmPointer,
    LookAtModal,
    RemovePointer,
    WriteLease,
    WritePointer,
    WriteServedName,
)
from claas_operator.plan.adapter.adapter import plan_adapter
from claas_operator.plan.job.job import plan_job
from claas_operator.plan.lease import plan_lease
from claas_operator.plan.lineage.lineage import lineage_for_jobs
from claas_operator.plan.modal.pointer import ServedPointer
from claas_operator.plan.modal.state import (
    LONGEST_ASKING_SECONDS,
    LOOK_AGAIN_SECONDS,
    ModalCall,
    ModalState,
    ModalTrouble,
    Removal,
    Setback,
    after_answer,
    after_look,
    after_setback,
    after_writing,
    rest_seconds,
)
from claas_operator.plan.server.handover_choice import HandoverChoice
from claas_operator.plan.serving_lease import ServedName, ServedRecord, read_served_name, served_name_manifest
from claas_operator.plan.world import AdapterWorld, Orphan, SecretsSeen
from tests.builders.modal.world import (
    URL,
    address,
    knows,
    modal_adapter,
    modal_server,
    modal_world,
    on_volume,
    pointer,
)
from tests.builders.world import NOW, adapter_world, ago, job, job_world, lease_world

ZERO, ONE = on_volume(0), on_volume(1, parent=0, job="step")
TO_ZERO, TO_ONE = pointer(ZERO), pointer(ONE)
SERVER = modal_server()
NOTHING = HandoverChoice(HandoverKind.NONE, "the engine computes elsewhere")
LOOK = LookAtModal(SERVER, "tone")
BOTH = modal_adapter(ZERO, ONE, served=0)


def setback(trouble: ModalTrouble, *, in_seconds: float = 30.0) -> Setback:
    return Setback(trouble, "what to do", 1, ago(5), NOW + timedelta(seconds=in_seconds))


def asked(world: AdapterWorld) -> list[Action]:
    """What a plan asks of Modal."""
    calls = (LookAtModal, WritePointer, ConfirmPointer)
    return [action for action in plan_adapter(world).actions if isinstance(action, calls)]


@pytest.mark.parametrize(
    ("state", "calls"),
    [
        (knows(), [LOOK]),
        (knows(calling=ModalCall.LOOK), []),
        (knows(looked=True, url=URL), [WritePointer(SERVER, TO_ONE)]),
        (knows(looked=True, url=URL, pointer=TO_ZERO), [WritePointer(SERVER, TO_ONE)]),
        (knows(looked=True, url=URL, pointer=TO_ZERO, calling=ModalCall.POINT), []),
        (knows(looked=True, url=URL, pointer=TO_ONE, written=True), [ConfirmPointer(SERVER, TO_ONE, URL)]),
        # LookResult as it should be, but status says that another version was served last.
        (knows(looked=True, url=URL, pointer=TO_ONE), [ConfirmPointer(SERVER, TO_ONE, URL)]),
        (knows(looked=True, url=URL, pointer=TO_ONE, written=True, calling=ModalCall.CONFIRM), []),
        # A newer version does not wait for the answer of the one before.
        (
            knows(looked=True, url=URL, pointer=TO_ZERO, written=True, calling=ModalCall.CONFIRM),
            [WritePointer(SERVER, TO_ONE)],
        ),
        (knows(looked=True, url=URL, pointer=TO_ONE, written=True, answered=TO_ONE), []),
        # What was seen to answer before its pointer was read again needs no other answer.
        (knows(looked=True, url=URL, pointer=TO_ONE, answered=TO_ONE), []),
        (knows(setback=setback(ModalTrouble.SERVICE_UNREACHABLE)), []),
        (knows(setback=setback(ModalTrouble.SERVICE_UNREACHABLE, in_seconds=-1)), [LOOK]),
        (knows(looked=True, pointer=TO_ONE, written=True, url=URL, setback=setback(ModalTrouble.NOT_YET)), []),
        # After a setback the address is looked up again.
        (
            knows(
                looked=True,
                pointer=TO_ONE,
                written=True,
                url=URL,
                setback=setback(ModalTrouble.NOT_YET, in_seconds=-1),
            ),
            [ConfirmPointer(SERVER, TO_ONE, None)],
        ),
        # A rest of one version holds no other one up; a rest of the whole service does.
        (
            knows(looked=True, pointer=TO_ZERO, written=True, url=URL, setback=setback(ModalTrouble.NOT_YET)),
            [WritePointer(SERVER, TO_ONE)],
        ),
        (knows(looked=True, pointer=TO_ZERO, written=True, setback=setback(ModalTrouble.BILLING_REQUIRED)), []),
    ],
)
def test_each_call_follows_from_what_is_known(state: ModalState, calls: list[Action]) -> None:
    assert asked(modal_world(BOTH, state)) == calls


def test_nothing_is_asked_once_the_version_has_answered_and_an_operator_that_starts_trusts_status() -> None:
    served = modal_adapter(ZERO, ONE, served=1)
    for state in (
        knows(looked=True, url=URL, pointer=TO_ONE),
        knows(looked=True, url=URL, pointer=TO_ONE, written=True, answered=TO_ONE),
    ):
        plan = plan_adapter(modal_world(served, state))
        assert asked(modal_world(served, state)) == []
        assert plan.requeue_seconds is None
        assert [(each.pod, each.version, each.state) for each in plan.status.replicas] == [
            ("modal:claas-vllm", 1, ReplicaState.SERVING)
        ]
        assert plan.status.serving_url == URL
        assert plan.status.ready_replicas == "1/1"
    # One that has just written the pointer does not: status is older.
    assert asked(modal_world(served, knows(looked=True, url=URL, pointer=TO_ONE, written=True))) != []


@pytest.mark.parametrize("answered", [None, TO_ONE])
def test_the_pointer_of_a_version_that_has_answered_is_looked_at_now_and_then_and_written_again_if_it_is_lost(
    answered: ServedPointer | None,
) -> None:
    served = modal_adapter(ZERO, ONE, served=1)
    state = knows(looked=True, url=URL, pointer=TO_ONE, answered=answered)
    fresh, old = ago(int(LOOK_AGAIN_SECONDS) - 1), ago(int(LOOK_AGAIN_SECONDS))
    assert asked(modal_world(served, replace(state, known_at=fresh))) == []
    due = modal_world(served, replace(state, known_at=old))
    assert asked(due) == [LOOK]
    assert [each.state for each in plan_adapter(due).status.replicas] == [ReplicaState.SERVING]
    # A look that fails is tried again, and takes nothing back.
    failed = after_setback(replace(state, known_at=old), ModalTrouble.SERVICE_UNREACHABLE, "no answer", NOW)
    assert asked(modal_world(served, failed)) == []
    assert [each.state for each in plan_adapter(modal_world(served, failed)).status.replicas] == [
        ReplicaState.SERVING
    ]
    found, lost = after_look(state, TO_ONE, URL, NOW), after_look(state, None, URL, NOW)
    assert asked(modal_world(served, found)) == []
    assert asked(modal_world(served, lost)) == [WritePointer(SERVER, TO_ONE)]
    assert asked(modal_world(served, after_writing(lost, TO_ONE, NOW))) == [ConfirmPointer(SERVER, TO_ONE, URL)]


@pytest.mark.parametrize(
    "change",
    [
        lambda world: replace(world, secrets=SecretsSeen(missing=("claas-modal/token-id (x)",))),
        lambda world: replace(world, name_taken_by="other"),
        lambda world: replace(world, refusals=("x",)),
    ],
)
def test_nothing_is_asked_where_it_could_do_no_good(change: object) -> None:
    assert callable(change)
    assert asked(change(modal_world(BOTH, knows()))) == []


def test_a_new_token_is_tried_at_once() -> None:
    state = knows(setback=setback(ModalTrouble.CREDENTIALS_REFUSED))
    world = modal_world(BOTH, state)
    assert asked(world) == []
    assert asked(replace(world, secrets=SecretsSeen(changed=ago(1)))) == [LOOK]
    assert asked(replace(world, secrets=SecretsSeen(changed=ago(60)))) == []


def test_what_will_be_served_is_written_down_before_it_is_pointed_to_with_all_that_is_needed_to_remove_it() -> None:
    plan = plan_adapter(modal_world(BOTH, knows(looked=True, url=URL)))
    record, lease, last = plan.actions
    assert isinstance(record, WriteServedName)
    assert isinstance(lease, WriteLease)
    assert isinstance(last, WritePointer)
    assert record.served.deployment == lease.lease.deployment == "claas-vllm.modal"
    assert record.served.record.modal == SERVER.place
    again = read_served_name(Lease.model_validate(served_name_manifest(record.served)))
    assert again.record == record.served.record
    assert ApplyCompanion not in {type(action) for action in plan.actions}


def test_records_of_earlier_releases_are_read_as_those_of_pods() -> None:
    text = '{"adapter_name": "tone", "adapter_uid": "u", "port": 8000}'
    assert ServedRecord.model_validate_json(text).modal is None


@pytest.mark.parametrize(
    ("state", "reason", "stalled", "says"),
    [
        (knows(setback=setback(ModalTrouble.NOT_DEPLOYED)), AdapterReason.APP_NOT_DEPLOYED, True, "what to do"),
        (
            knows(setback=setback(ModalTrouble.CREDENTIALS_REFUSED)),
            AdapterReason.CREDENTIALS_REFUSED,
            True,
            "what to do",
        ),
        (knows(setback=setback(ModalTrouble.BILLING_REQUIRED)), AdapterReason.BILLING_REQUIRED, True, "what to do"),
        (
            knows(setback=setback(ModalTrouble.SERVICE_UNREACHABLE)),
            AdapterReason.SERVICE_UNREACHABLE,
            False,
            "what to do",
        ),
        (
            knows(looked=True, pointer=TO_ONE, written=True, setback=setback(ModalTrouble.SERVER_UNREACHABLE)),
            AdapterReason.VLLM_UNREACHABLE,
            False,
            "App claas-vllm on Modal: what to do",
        ),
        (
            knows(looked=True, pointer=TO_ONE, written=True, setback=setback(ModalTrouble.NOT_YET)),
            AdapterReason.LOADING,
            False,
            "Version 1 is awaited of the app claas-vllm on Modal, for the first time: what to do",
        ),
        (knows(), AdapterReason.LOADING, False, "Version 1 is awaited"),
        (
            knows(looked=True, pointer=TO_ONE, answered=TO_ONE, containers=3),
            AdapterReason.SERVING,
            False,
            "serves version 1 as tone; up to 3 containers",
        ),
    ],
)
def test_status_says_what_the_servers_do_and_who_has_to_act(
    state: ModalState, reason: AdapterReason, stalled: bool, says: str
) -> None:
    status = plan_adapter(modal_world(BOTH, state)).status
    ready = condition_of(status.conditions, AdapterCondition.READY)
    found = condition_of(status.conditions, AdapterCondition.STALLED)
    assert ready is not None
    assert found is not None
    assert ready.reason == reason
    assert says in ready.message
    assert (found.status is ConditionStatus.TRUE) is stalled
    # Until the new version has answered, the one before is what is served.
    assert status.served_version == (1 if reason is AdapterReason.SERVING else 0)


def test_a_missing_app_is_told_before_there_is_a_version() -> None:
    status = plan_adapter(modal_world(modal_adapter(), knows(setback=setback(ModalTrouble.NOT_DEPLOYED)))).status
    ready = condition_of(status.conditions, AdapterCondition.READY)
    assert ready is not None
    assert ready.reason == AdapterReason.APP_NOT_DEPLOYED
    assert asked(modal_world(modal_adapter(), knows())) == [LOOK]
    assert asked(modal_world(modal_adapter(), knows(looked=True, url=URL))) == []


def test_a_new_version_that_the_containers_refuse_is_rejected_and_the_pointer_goes_back() -> None:
    state = after_setback(
        knows(looked=True, url=URL, pointer=TO_ONE, written=True),
        ModalTrouble.REFUSED,
        "rank 64",
        NOW,
        refused=TO_ONE,
    )
    plan = plan_adapter(modal_world(BOTH, state))
    verdicts = {each.number: each.verdict for each in plan.status.versions}
    assert verdicts == {0: VersionVerdict.SERVED, 1: VersionVerdict.REJECTED}
    assert plan.status.latest_version == 0
    assert WritePointer(SERVER, TO_ZERO) in plan.actions
    (note,) = plan.news
    assert note.warning
    assert "rank 64" in note.message
    # Its job ends by that.
    found = BOTH.model_copy(update={"status": plan.status})
    waits = job(status=DistillJobStatus(produced_version=1, phase=JobPhase.SWAPPING, attempts=1))
    world = replace(job_world(waits, on=found), lineage=lineage_for_jobs(found, ()))
    failed = condition_of(plan_job(world).status.conditions, "Failed")
    assert failed is not None
    assert failed.reason == FailureReason.VERSION_REJECTED


def test_a_first_version_that_the_containers_refuse_stays_since_there_is_no_other() -> None:
    first = modal_adapter(ZERO)
    known = knows(looked=True, url=URL, pointer=TO_ZERO, written=True)
    state = after_setback(known, ModalTrouble.REFUSED, "rank 64", NOW, refused=TO_ZERO)
    plan = plan_adapter(modal_world(first, state))
    ready = condition_of(plan.status.conditions, AdapterCondition.READY)
    assert ready is not None
    assert (ready.reason, ready.message) == (AdapterReason.LOAD_FAILED, "App claas-vllm on Modal: rank 64")
    assert [each.verdict for each in plan.status.versions] == [VersionVerdict.UNTRIED]


def test_a_version_that_is_not_on_the_volume_is_told() -> None:
    bare = ZERO.model_copy(update={"weights": None})
    world = modal_world(modal_adapter(bare), knows(looked=True, url=URL))
    ready = condition_of(plan_adapter(world).status.conditions, AdapterCondition.READY)
    assert ready is not None
    assert ready.reason == AdapterReason.LOAD_FAILED
    assert "version 0 has no files on the Modal Volume" in ready.message
    assert asked(world) == []


@pytest.mark.parametrize(("served", "done"), [(0, False), (1, True)])
def test_a_job_is_complete_when_its_version_has_answered_though_there_is_no_pod(served: int, done: bool) -> None:
    found = modal_adapter(ZERO, ONE, served=served)
    waits = job(status=DistillJobStatus(produced_version=1, phase=JobPhase.SWAPPING, attempts=1))
    world = replace(job_world(waits, on=found, pods=()), lineage=lineage_for_jobs(found, ()))
    conditions = plan_job(world).status.conditions
    complete = condition_of(conditions, "Complete")
    assert (complete is not None and complete.status is ConditionStatus.TRUE) is done


def test_no_step_waits_for_a_pod_where_there_are_none() -> None:
    found = modal_adapter(ZERO, served=0)
    world = replace(job_world(job(), on=found, pods=(), handover=NOTHING), lineage=lineage_for_jobs(found, ()))
    plan = plan_job(world)
    assert any(isinstance(action, WriteLease) for action in plan.actions), plan.status.message


SERVED = ServedName(
    namespace="team",
    deployment="claas-vllm.modal",
    served_name="tone",
    record=ServedRecord(adapter_name="tone", adapter_uid="u", port=8000, modal=SERVER.place),
    resource_version="7",
    uid="lease",
)


@pytest.mark.parametrize(
    ("removal", "acts", "again"),
    [
        (Removal(), ["RemovePointer"], 1.0),
        (Removal(calling=True), [], 15.0),
        (Removal(setback=setback(ModalTrouble.SERVICE_UNREACHABLE)), [], 15.0),
        (Removal(setback=setback(ModalTrouble.SERVICE_UNREACHABLE, in_seconds=-1)), ["RemovePointer"], 1.0),
        (Removal(done=True), ["ForgetServedName", "DeleteLease"], None),
    ],
)
def test_the_record_of_an_adapter_that_is_gone_stays_until_its_pointer_is_removed(
    removal: Removal, acts: list[str], again: float | None
) -> None:
    world = lease_world(free=True, subject_found=False, orphans=(Orphan(SERVED, (), removal),))
    plan = plan_lease(world)
    assert [type(action).__name__ for action in plan.actions] == acts
    assert plan.requeue_seconds == again
    assert all(action.served == SERVED for action in plan.actions if isinstance(action, RemovePointer))


def test_a_server_is_asked_less_and_less_often_while_it_does_not_answer() -> None:
    waits = [rest_seconds(ModalTrouble.NOT_YET, times) for times in range(1, 30)]
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST_ASKING_SECONDS
    # A cold start of two minutes is noticed within one more.
    assert sum(waits[:10]) > 100
    assert max(waits[:10]) < 60
    assert sum(waits) > 3600


def test_what_is_pointed_to_anew_has_to_answer_anew() -> None:
    answered = after_answer(knows(looked=True, pointer=TO_ONE, written=True), TO_ONE, URL, 1)
    assert answered.answered == TO_ONE
    assert after_writing(answered, TO_ZERO, NOW).answered is None
    assert address(1) in TO_ONE.weights


def test_an_adapter_in_the_cluster_has_no_address() -> None:
    assert plan_adapter(adapter_world()).status.serving_url is None


@pytest.mark.parametrize(
    ("state", "served", "reason"),
    [
        (knows(), 1, AdapterReason.SERVING),
        (knows(calling=ModalCall.LOOK), 1, AdapterReason.SERVING),
        (knows(calling=ModalCall.LOOK), 0, AdapterReason.LOADING),
        (knows(looked=True, url=URL), 1, AdapterReason.LOADING),
        (knows(setback=setback(ModalTrouble.SERVICE_UNREACHABLE)), 1, AdapterReason.SERVICE_UNREACHABLE),
    ],
)
def test_an_operator_that_starts_takes_back_nothing_that_status_says_until_it_knows_better(
    state: ModalState, served: int, reason: AdapterReason
) -> None:
    status = plan_adapter(modal_world(modal_adapter(ZERO, ONE, served=served), state)).status
    ready = condition_of(status.conditions, AdapterCondition.READY)
    assert ready is not None
    assert ready.reason == reason
