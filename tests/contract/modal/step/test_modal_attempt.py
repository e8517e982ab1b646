"""Whole attempts at jobs by the Modal engine, from samples to published versions, as the trainer runs them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from claas_contract.engine import OWN_FILES, StateRef
from claas_contract.input import ModelLocation, TrainerInput
from claas_contract.outcome import ExitCode, FailureReason
from claas_contract.result import TrainerResult
from claas_crds.v1alpha1.engine import EngineName, EngineSpec, StateKeeping
from claas_crds.v1alpha1.training import TeacherKind
from claas_modal_client.addresses import VolumeAddress
from claas_modal_client.pointers import Pointer, pointer_path
from claas_trainer.attempt.initialise import initialise
from claas_trainer.attempt.run import run
from claas_trainer.engines.modal.folders import uploaded_name
from claas_trainer.errors import TrainerError
from claas_trainer.messages.events import Reporter
from claas_trainer.store.record import ModalProvenance
from claas_trainer.store.versions import StoredVersion
from tests.contract.modal.app.deployed import VOLUME
from tests.contract.modal.trainer_site import FEEDBACK, SAMPLES, TRAINING, ModalAdapter, calls_since
from tests.peers.modal.server import TOKEN_SECRET, ModalPeer
from tests.unit.trainer.conftest import reporter

__all__ = ["reporter"]

pytestmark = pytest.mark.contract


@pytest.fixture
def adapter(
    modal_peer: ModalPeer, modal_model: Path, tmp_path: Path, reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> ModalAdapter:
    """With version 0."""
    monkeypatch.setenv("MODAL_SERVER_URL", modal_peer.url)
    made = ModalAdapter(modal_peer, modal_model, tmp_path / "modal", uid=f"adapter-{len(modal_peer.rpcs)}")
    initialise(made.document(0), made.paths, reporter)
    return made


async def step(adapter: ModalAdapter, reporter: Reporter, **changes: object) -> StoredVersion:
    """One job more."""
    adapter.jobs += 1
    result = await run(adapter.document(1, **changes), adapter.paths, reporter)
    assert result.version is not None
    return adapter.store.read(result.version.number)


def on_volume(adapter: ModalAdapter, address: str | None) -> Path:
    assert address is not None
    return adapter.peer.volume(VOLUME) / VolumeAddress.parse(address).folder


@pytest.mark.parametrize("keep", StateKeeping)
async def test_three_steps_in_a_row_are_the_local_engine_s_to_the_bit(
    keep: StateKeeping, adapter: ModalAdapter, reporter: Reporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter.spec = adapter.spec.model_copy(update={"keep_state": keep})
    local = ModalAdapter(adapter.peer, adapter.model, tmp_path / "local", weights=True)
    here = {"engine": EngineSpec.of(EngineName.LOCAL)}
    initialise(local.document(0, **here), local.paths, reporter)
    # The second step needs log-probabilities under version 0 and is too large to go inline; the third starts an
    # average.
    answered = {"response_token_ids": [5, 6, 7], "version": 0}
    long = [{**SAMPLES[0], "response": "Because it is so. " * 90}, {**SAMPLES[1], **answered}]
    for number, training in ((1, {}), (2, {"seed": 4}), (3, {"teacher": TeacherKind.EMA})):
        settings = {"training": TRAINING.model_copy(update=training)}
        monkeypatch.setattr("tests.contract.modal.trainer_site.SAMPLES", long if number == 2 else SAMPLES)
        theirs, ours = await step(local, reporter, **here, **settings), await step(adapter, reporter, **settings)
        assert ours.record.number == theirs.record.number == number
        files = {**theirs.record.files}
        assert any("average" in name for name in files) == (number == 3)
        folder = on_volume(adapter, ours.record.weights)
        assert {name: (folder / name).read_bytes() for name in files} == {
            name: (theirs.folder / name).read_bytes() for name in files
        }
        adapter.store.verify(ours)
        if keep is StateKeeping.PVC:
            assert ours.record.files == files
            assert ours.record.state == OWN_FILES
        else:
            assert ours.record.files.items() < files.items()
            assert ours.record.weights is not None
            assert ours.record.state == StateRef(engine="modal", uri=ours.record.weights)
        of_step, of_local = ours.record.step, theirs.record.local
        assert isinstance(of_step, ModalProvenance)
        assert of_local is not None
        assert (of_step.samples_digest, of_step.base_fingerprint) == (
            of_local.samples_digest,
            of_local.base_fingerprint,
        )
        assert of_step.answered_by == of_local.answered_by
        assert ours.record.samples == theirs.record.samples
        assert ours.record.samples.computed == (number == 2)
        metrics = {name: value for name, value in ours.record.metrics.items() if not name.startswith("modal_seconds")}
        assert metrics == theirs.record.metrics
        assert {"modal_seconds_start", "modal_seconds_load", "modal_seconds_step", "modal_seconds_commit"} == (
            ours.record.metrics.keys() - metrics.keys()
        )
        assert ours.record.libraries.items() >= theirs.record.libraries.items()


async def test_what_is_known_of_a_step_tells_what_it_cost_and_no_text_or_token_leaves_the_pod_but_to_the_platform(
    adapter: ModalAdapter, reporter: Reporter, capsys: pytest.CaptureFixture[str]
) -> None:
    version = await step(adapter, reporter)
    made = version.record.step
    assert isinstance(made, ModalProvenance)
    (call,) = [call for call in adapter.peer.calls if call.id == made.modal_call]
    # The peer's name for a process that was restored from a snapshot.
    assert made.modal_container.removesuffix(".restored") == call.runs[-1].container
    assert made.modal_gpu == "none"
    assert version.record.feedback_ids == ["one", "two"]
    written = [path for root in (adapter.paths.storage, adapter.peer.volume(VOLUME)) for path in root.rglob("*")]
    texts = [path.read_bytes().decode(errors="replace") for path in written if path.is_file()]
    logged = "".join(path.read_text(errors="replace") for path in adapter.peer.folder.rglob("*.log"))
    for private in (FEEDBACK, TOKEN_SECRET):
        assert not any(private in text for text in (*texts, logged, capsys.readouterr().out))


async def test_a_parent_that_the_volume_has_lost_is_uploaded_with_its_state_if_the_claim_has_it(
    adapter: ModalAdapter, reporter: Reporter
) -> None:
    adapter.spec = adapter.spec.model_copy(update={"keep_state": StateKeeping.PVC})
    await step(adapter, reporter)
    first = adapter.head()
    adapter.remove(1)
    await step(adapter, reporter)
    (uploaded,) = [each for each in adapter.folders(1) if each.name == uploaded_name(1, first.record.files)]
    assert (uploaded / "optimizer_master.safetensors").exists()
    adapter.spec = adapter.spec.model_copy(update={"keep_state": StateKeeping.VOLUME})
    await step(adapter, reporter)
    before = len(adapter.peer.calls)
    adapter.remove(3)
    with pytest.raises(TrainerError, match="optimiser state of version 3 is no longer whole") as expired:
        await step(adapter, reporter)
    assert expired.value.reason is FailureReason.CHECKPOINT_EXPIRED
    assert not calls_since(adapter.peer, before)


async def test_a_parent_that_is_damaged_on_the_volume_is_uploaded_beside_when_the_app_says_so(
    adapter: ModalAdapter, reporter: Reporter
) -> None:
    adapter.spec = adapter.spec.model_copy(update={"keep_state": StateKeeping.PVC})
    first = await step(adapter, reporter)
    damaged = on_volume(adapter, first.record.weights) / "optimizer_master.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    before = len(adapter.peer.calls)
    await step(adapter, reporter)
    assert len(calls_since(adapter.peer, before)) == 2
    (uploaded,) = [each for each in adapter.folders(1) if each.name == uploaded_name(1, first.record.files)]
    assert (uploaded / damaged.name).read_bytes() == (first.folder / damaged.name).read_bytes()


async def test_what_no_step_and_no_server_needs_is_removed_from_the_volume(
    adapter: ModalAdapter, reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("claas_trainer.engines.modal.tidying.YOUNG", timedelta(0))
    adapter.spec = adapter.spec.model_copy(update={"superseded_state_ttl_seconds": 0})
    left = adapter.peer.volume(VOLUME) / "adapters" / adapter.uid / "1-of-a-rerun"
    first = await step(adapter, reporter)
    left.mkdir()
    (left / "manifest.json").write_text("{}")
    await step(adapter, reporter)
    assert not left.exists()
    assert [len(adapter.folders(number)) for number in (0, 1, 2)] == [0, 1, 1]
    assert first.record.weights is not None
    pointer = Pointer(
        served_name="tone", adapter_uid=adapter.uid, version=1, weights=VolumeAddress.parse(first.record.weights)
    )
    place = adapter.peer.volume(VOLUME) / pointer_path("claas-vllm", "tone")
    place.parent.mkdir(parents=True)
    place.write_text(pointer.model_dump_json())
    await step(adapter, reporter)
    assert [len(adapter.folders(number)) for number in (1, 2, 3)] == [1, 1, 1]
    place.unlink()
    await step(adapter, reporter)
    assert [len(adapter.folders(number)) for number in (1, 2, 3, 4)] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [("app", FailureReason.APP_NOT_DEPLOYED), ("token", FailureReason.CREDENTIALS_REFUSED)],
)
def test_version_0_is_not_made_with_a_token_or_an_app_that_is_not_there(
    trouble: str,
    reason: FailureReason,
    modal_peer: ModalPeer,
    modal_model: Path,
    tmp_path: Path,
    reporter: Reporter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MODAL_SERVER_URL", modal_peer.url)
    made = ModalAdapter(modal_peer, modal_model, tmp_path, uid="unmade")
    if trouble == "token":
        made.give_token("as-another")
    else:
        made.spec = made.spec.model_copy(update={"app": "another"})
    with pytest.raises(TrainerError) as refused:
        initialise(made.document(0), made.paths, reporter)
    assert refused.value.reason is reason
    assert made.store.numbers() == []
    assert made.folders() == []


async def test_an_adapter_of_another_base_model_than_the_app_s_is_told_what_to_deploy(
    adapter: ModalAdapter, reporter: Reporter
) -> None:
    (adapter.root / "models" / "other").symlink_to(adapter.model)
    with pytest.raises(TrainerError, match="CLAAS_MODAL_MODEL=other") as refused:
        await step(adapter, reporter, model=ModelLocation(path="other"))
    assert refused.value.reason is FailureReason.APP_NOT_DEPLOYED


async def test_an_adapter_that_is_made_again_goes_on_from_its_versions_without_the_base_model_s_weights(
    adapter: ModalAdapter, reporter: Reporter
) -> None:
    await step(adapter, reporter)
    adapter.uid += "-again"
    found = initialise(adapter.document(0), adapter.paths, reporter)
    assert found.already_published
    assert found.version is not None
    assert found.version.number == 1
    second = await step(adapter, reporter)
    assert second.record.parent == 1
    assert second.record.weights is not None
    assert f"adapters/{adapter.uid}/2-" in second.record.weights


async def test_a_version_of_the_local_engine_is_no_parent_for_this_one(
    adapter: ModalAdapter, reporter: Reporter
) -> None:
    local = ModalAdapter(adapter.peer, adapter.model, adapter.root / "local")
    initialise(local.document(0, engine=EngineSpec.of(EngineName.LOCAL)), local.paths, reporter)
    with pytest.raises(TrainerError, match=r"spec\.engine is modal and was local") as refused:
        await step(local, reporter)
    assert refused.value.reason is FailureReason.ADAPTER_MISMATCH


def test_the_trainer_s_program_takes_a_step_and_one_that_is_told_to_end_leaves_its_call_to_the_next(
    adapter: ModalAdapter,
) -> None:
    adapter.jobs += 1
    before = len(adapter.peer.calls)
    program = start(adapter, adapter.document(1))
    wait_for(lambda: "call-made" in journal_of(adapter))
    program.send_signal(signal.SIGTERM)
    assert ended(adapter, program) == (ExitCode.RETRYABLE, FailureReason.INTERRUPTED)
    program = start(adapter, adapter.document(2))
    assert ended(adapter, program) == (ExitCode.SUCCEEDED, None)
    (call,) = calls_since(adapter.peer, before)
    assert not call.cancelled
    assert len(call.runs) == 1
    assert adapter.store.numbers() == [0, 1]


def start(adapter: ModalAdapter, document: TrainerInput) -> subprocess.Popen[bytes]:
    path = adapter.paths.scratch / "input.json"
    path.write_text(document.model_dump_json())
    command = [sys.executable, "-m", "claas_trainer", "run", "--input", str(path)]
    environment = {**os.environ, **adapter.environment, "CLAAS_PROGRESS_PORT": "0"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


def ended(adapter: ModalAdapter, program: subprocess.Popen[bytes]) -> tuple[int, FailureReason | None]:
    code = program.wait(120)
    result = TrainerResult.model_validate_json(adapter.paths.termination_message.read_text())
    return code, result.reason


def journal_of(adapter: ModalAdapter) -> str:
    """What the attempts at the current job have written."""
    path = adapter.store.root / "journal" / f"job-{adapter.jobs}.jsonl"
    return path.read_text() if path.exists() else ""


def wait_for(true: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)
