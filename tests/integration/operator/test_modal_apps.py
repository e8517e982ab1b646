"""Adapters that a vLLM on Modal serves: a real API server and operator, Modal's own client and container entrypoint
against the peer, containers with the real follower. Trainers and vLLM are played."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator

import pytest
from pydantic import JsonValue

from claas_crds.v1alpha1.version import VersionVerdict
from claas_kube.objects.meta import Manifest
from claas_kube.resources import ADAPTERS, BATCH_JOBS, CONFIG_MAPS, DISTILL_JOBS, EVENTS, LEASES, PODS, SECRETS
from tests.cluster.services.control_plane import free_ports
from tests.peers.modal.failures import SPENT
from tests.simulation.cluster_api import text
from tests.simulation.modal.platform import PROXY_TOKEN, TOKEN, PlayedModal, played_modal
from tests.simulation.operator_process import OperatorProcess
from tests.simulation.scene import Scene, Simulation, holds, reason_of

pytestmark = pytest.mark.integration

MOST = 6
MANY = 20
IDLE_SECONDS = 4.0
READY_SECONDS = 120.0
PRIVATE = (TOKEN["token-secret"], PROXY_TOKEN["secret"])


@pytest.fixture(scope="module")
def modal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlayedModal]:
    with played_modal(tmp_path_factory.mktemp("modal"), idle_seconds=IDLE_SECONDS) as played:
        yield played


@pytest.fixture(scope="module")
def its_operator(
    modal: PlayedModal,
    simulation: Simulation,
    operator_process: OperatorProcess,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[OperatorProcess]:
    """An operator in place of the session's. It looks at everything every second, so that polling would be seen."""
    if operator_process.running:
        operator_process.stop()
    settings = {
        "CLAAS_MODAL_SERVER_URL": modal.peer.url,
        "CLAAS_MAX_CONCURRENT_STEPS": str(MOST),
        "CLAAS_RESYNC_SECONDS": "1",
    }
    log = tmp_path_factory.mktemp("operator") / "operator.log"
    process = OperatorProcess(simulation.cluster, log, health_port=free_ports(1)[0], settings=settings)
    yield process
    if process.running:
        process.stop()


@pytest.fixture
def leading(its_operator: OperatorProcess) -> Iterator[OperatorProcess]:
    if not its_operator.running:
        its_operator.start_leading()
    yield its_operator
    print(its_operator.tail())


@pytest.fixture
def team(scene: Scene) -> Scene:
    """A namespace with the tokens."""
    scene.make_secret("claas-modal", dict(TOKEN))
    scene.make_secret("claas-modal-proxy", dict(PROXY_TOKEN))
    return scene


def apply(scene: Scene, name: str, app: str = "claas-vllm", **modal: JsonValue) -> None:
    scene.apply_adapter(
        name, deployment=None, engine={"modal": modal}, modalApp={"app": app}, handover="Auto", servedName=name
    )


def serving(scene: Scene, name: str, version: int, seconds: float = READY_SECONDS) -> None:
    scene.wait_for_adapter(
        name,
        lambda found: holds(found.status.conditions, "Ready") and found.status.served_version == version,
        timeout_seconds=seconds,
    )


def everything(scene: Scene) -> str:
    """All that lies in the namespace but the Secrets with the tokens."""
    kinds = (ADAPTERS, DISTILL_JOBS, LEASES, BATCH_JOBS, PODS, SECRETS, CONFIG_MAPS, EVENTS)
    found = [each for kind in kinds for each in scene.objects(kind)]
    return json.dumps([each for each in found if not text(each, "metadata", "name").startswith("claas-modal")])


def test_a_step_is_trained_without_a_device_pointed_to_and_confirmed_and_then_nothing_is_asked(
    leading: OperatorProcess, team: Scene, modal: PlayedModal
) -> None:
    apply(team, "told")
    serving(team, "told", 0)
    status = team.adapter("told").status
    assert status.serving_url == modal.peer.server_url("claas-vllm", "Vllm")
    assert [(each.pod, each.version, each.state) for each in status.replicas] == [("modal:claas-vllm", 0, "Serving")]
    assert holds(status.conditions, "CompanionReady")
    team.apply_job("step", "told")
    team.wait_until("step", "Complete", timeout_seconds=READY_SECONDS)
    assert modal.pointers()["told"] == 1
    assert team.adapter("told").status.served_version == 1
    (run,) = team.runs("step")
    assert run.document.serving is not None
    assert run.document.serving.pods == []
    job = next(each for each in team.objects(BATCH_JOBS) if text(each, "metadata", "name") in str(run.pod))
    assert modal.peer.url in json.dumps(job)
    assert '"secretName": "claas-modal"' in json.dumps(job)
    # The container ends when it is idle, since nobody asks it anything, and nobody asks Modal's API either.
    team.wait("the container's end", lambda: modal.awake() == 0, timeout_seconds=30)
    asked = modal.asked()
    time.sleep(IDLE_SECONDS)
    assert (modal.awake(), modal.asked()) == (0, asked)
    # Nor does an operator that starts anew: it reads the pointer.
    leading.kill()
    leading.start_leading()
    team.wait("the pointer's being read", lambda: modal.asked() > asked, timeout_seconds=30)
    time.sleep(IDLE_SECONDS)
    assert modal.awake() == 0
    assert holds(team.adapter("told").status.conditions, "Ready")
    said = everything(team) + leading.log.read_text()
    for secret in PRIVATE:
        assert secret not in said
        assert base64.b64encode(secret.encode()).decode() not in said


def test_a_version_that_containers_refuse_fails_its_job_and_the_next_is_trained_from_the_one_before(
    leading: OperatorProcess, team: Scene, modal: PlayedModal
) -> None:
    modal.refuse("refused", 1)
    apply(team, "refused")
    serving(team, "refused", 0)
    team.apply_job("bad", "refused")
    failed = team.wait_until("bad", "Failed", timeout_seconds=READY_SECONDS)
    assert reason_of(failed.status.conditions, "Failed") == "VersionRejected"
    serving(team, "refused", 0)
    team.wait("the pointer to go back", lambda: modal.pointers()["refused"] == 0)
    told = [message for _, reason, message in team.events("refused") if reason == "VersionRejected"]
    assert "does not fit --max-lora-rank" in told[0]
    team.apply_job("good", "refused")
    team.wait_until("good", "Complete", timeout_seconds=READY_SECONDS)
    versions = {each.number: each for each in team.adapter("refused").status.versions}
    assert versions[1].verdict is VersionVerdict.REJECTED
    assert (versions[2].parent, team.adapter("refused").status.served_version) == (0, 2)


def test_an_operator_that_dies_between_pointer_and_answer_is_followed_by_one_that_goes_on(
    leading: OperatorProcess, team: Scene, modal: PlayedModal
) -> None:
    apply(team, "killed")
    serving(team, "killed", 0)
    team.wait("no container", lambda: modal.awake() == 0, timeout_seconds=30)
    team.apply_job("step", "killed")
    team.wait("the new pointer", lambda: modal.pointers()["killed"] == 1, timeout_seconds=30, every_seconds=0.02)
    leading.kill()
    assert team.adapter("killed").status.served_version == 0
    leading.start_leading()
    team.wait_until("step", "Complete", timeout_seconds=READY_SECONDS)
    assert team.adapter("killed").status.served_version == 1
    assert len(team.runs("step")) == 1


def test_the_pointers_of_adapters_that_go_or_are_renamed_while_nobody_looks_are_removed(
    leading: OperatorProcess, team: Scene, modal: PlayedModal
) -> None:
    apply(team, "gone")
    apply(team, "renamed")
    serving(team, "gone", 0)
    serving(team, "renamed", 0)
    leading.stop()
    team.delete(ADAPTERS, "gone")
    changes: Manifest = {"spec": {"serving": {"servedName": "with-another-name"}}}
    team.merge(ADAPTERS, "renamed", changes)
    leading.start_leading()
    team.wait("the removal", lambda: not {"gone", "renamed"} & modal.pointers().keys(), timeout_seconds=30)
    team.wait("the pointer of the new name", lambda: modal.pointers().get("with-another-name") == 0)
    team.delete(ADAPTERS, "renamed")
    team.wait("the removal", lambda: "with-another-name" not in modal.pointers(), timeout_seconds=30)
    team.wait("no record left", lambda: not team.objects(LEASES), timeout_seconds=30)


def test_twenty_adapters_of_one_app_learn_within_their_places(
    leading: OperatorProcess, team: Scene, modal: PlayedModal
) -> None:
    names = [f"many{number:02}" for number in range(MANY)]
    for name in names:
        apply(team, name)
    for name in names:
        serving(team, name, 0, seconds=120)
    for name in names:
        team.apply_job(f"job-{name}", name)
    for name in names:
        team.wait_until(f"job-{name}", "Complete", timeout_seconds=120)
    assert {name: modal.pointers()[name] for name in names} == dict.fromkeys(names, 1)
    runs = team.runs()
    assert len(runs) == MANY
    now = time.monotonic()
    most = max(sum(run.began <= at.began < (run.ended or now) for run in runs) for at in runs)
    assert most <= MOST


def test_an_app_that_is_not_deployed_and_a_token_that_is_refused_are_told_and_mended_by_themselves(
    leading: OperatorProcess, team: Scene, modal: PlayedModal
) -> None:
    team.merge(SECRETS, "claas-modal", {"stringData": {"token-secret": "as-wrong"}})
    apply(team, "mended", app="claas-later")

    def waits_for(reason: str) -> str:
        found = team.wait_for_adapter(
            "mended", lambda each: reason_of(each.status.conditions, "Stalled") == reason, timeout_seconds=40
        )
        return next(each.message for each in found.status.conditions if each.type == "Stalled")

    assert "spec.engine.modal.tokenSecretRef" in waits_for("CredentialsRefused")
    team.merge(SECRETS, "claas-modal", {"stringData": dict(TOKEN)})
    assert "deploy the app" in waits_for("AppNotDeployed")
    modal.deploy("claas-later", containers=2)
    # It is looked for again by itself, and at once when the spec changes.
    changes: Manifest = {"spec": {"serving": {"probe": {"maxTokens": 4}}}}
    team.merge(ADAPTERS, "mended", changes)
    serving(team, "mended", 0)
    ready = next(each for each in team.adapter("mended").status.conditions if each.type == "Ready")
    assert "up to 2 containers" in ready.message


def test_credit_that_has_run_out_keeps_the_version_before_in_service(
    leading: OperatorProcess, team: Scene, modal: PlayedModal
) -> None:
    apply(team, "poor")
    serving(team, "poor", 0)
    rule = modal.peer.fail(["VolumeGetOrCreate", "VolumePutFiles2"], SPENT)
    try:
        team.apply_job("step", "poor")
        found = team.wait_for_adapter(
            "poor",
            lambda each: reason_of(each.status.conditions, "Stalled") == "BillingRequired",
            timeout_seconds=40,
        )
        assert found.status.served_version == 0
        assert modal.pointers()["poor"] == 0
    finally:
        rule.lift()
    team.wait_until("step", "Complete", timeout_seconds=READY_SECONDS)
    assert modal.pointers()["poor"] == 1


def test_the_same_name_of_two_namespaces_in_one_app_is_told(
    leading: OperatorProcess, team: Scene, modal: PlayedModal, simulation: Simulation
) -> None:
    apply(team, "shared")
    serving(team, "shared", 0)
    other = Scene(simulation, f"{team.namespace[:40]}-two")
    other.set_up()
    try:
        other.make_secret("claas-modal", dict(TOKEN))
        other.make_secret("claas-modal-proxy", dict(PROXY_TOKEN))
        apply(other, "shared")
        found = other.wait_for_adapter(
            "shared",
            lambda each: reason_of(each.status.conditions, "Stalled") == "ServedNameTaken",
            timeout_seconds=40,
        )
        assert f"{team.namespace}/shared" in json.dumps(found.status.model_dump(mode="json"))
        team.delete(ADAPTERS, "shared")
        serving(other, "shared", 0)
    finally:
        other.tear_down()
