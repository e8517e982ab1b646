"""A worker killed at any call of its step or entry of its journal, and the attempt after it: one version, of one step
that was paid for once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from claas_contract.input import TrainerInput
from claas_crds.v1alpha1.engine import StateKeeping
from claas_trainer.attempt.initialise import initialise
from claas_trainer.engines.modal.folders import uploaded_name
from claas_trainer.messages.events import Reporter
from tests.contract.modal.trainer_site import TRAINING, ModalAdapter, calls_since
from tests.contract.workers.attempts import Attempts, attempts
from tests.contract.workers.killer import Killer
from tests.peers.modal.failures import Do, Rpc, When
from tests.peers.modal.server import ModalPeer

pytestmark = pytest.mark.contract


@pytest.fixture(scope="module")
def adapter(modal_peer: ModalPeer, modal_model: Path, tmp_path_factory: pytest.TempPathFactory) -> ModalAdapter:
    made = ModalAdapter(modal_peer, modal_model, tmp_path_factory.mktemp("killed"), uid="killed")
    made.spec = made.spec.model_copy(update={"keep_state": StateKeeping.PVC})
    descriptor = os.open(os.devnull, os.O_WRONLY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODAL_SERVER_URL", modal_peer.url)
        initialise(made.document(0), made.paths, Reporter(descriptor))
    os.close(descriptor)
    return made


@pytest.fixture(scope="module")
def workers(adapter: ModalAdapter) -> Iterator[Attempts]:
    modules = ["claas_trainer.attempt.run", "claas_trainer.engines.modal.step", "claas_trainer.model.hub_tokenizer"]
    with attempts(modules, adapter.environment, adapter.paths.scratch) as made:
        yield made


Death = Callable[[ModalAdapter, Attempts, TrainerInput], None]


def at_rpc(name: str, when: When, at: int = 1) -> Death:
    """The worker dies when the platform has been asked, or has done it and not answered yet."""

    def die(adapter: ModalAdapter, workers: Attempts, document: TrainerInput) -> None:
        killer = Killer[Rpc](lambda rpc: rpc.container is None, at)
        rule = adapter.peer.fail(name, Do(killer), when=when)
        killer.pid = workers.begin(document)
        killer.ready.set()
        assert workers.result() is None
        assert killer.killed
        rule.lift()

    return die


def at_entry(when: str, kind: str) -> Death:
    """The worker dies before or after an entry of the journal."""

    def die(adapter: ModalAdapter, workers: Attempts, document: TrainerInput) -> None:
        workers.begin(document, f"{when} {kind}")
        assert workers.result() is None

    return die


POINTS: dict[str, Death] = {
    "preflight": at_rpc("ClassGet", When.RECEIVED),
    "parent": at_rpc("VolumeGetFile2", When.RECEIVED, 1),
    "call": at_rpc("FunctionMap", When.RECEIVED),
    "called": at_rpc("FunctionMap", When.DONE),
    "asked": at_rpc("FunctionGetOutputs", When.RECEIVED),
    "told": at_rpc("FunctionGetOutputs", When.DONE),
    "answer": at_rpc("VolumeGetFile2", When.DONE, 2),
    "optimiser": at_rpc("VolumeGetFile2", When.RECEIVED, 4),
    **{
        f"{when} {kind}": at_entry(when, kind)
        for kind in ("call-asked", "call-made", "call-ended", "step-taken")
        for when in ("before", "after")
    },
    "before published": at_entry("before", "published"),
}
CALLED_AGAIN = {"call", "called", "before call-made"}
"""Points after which nobody knows the call, if it was made: it is made again, and answered from the step of the
first."""
PUBLISHED = {"before published"}


@pytest.mark.parametrize("name", POINTS)
def test_a_worker_killed_anywhere_and_the_attempt_after_it_make_one_version_of_one_step(
    name: str, adapter: ModalAdapter, workers: Attempts
) -> None:
    parent = adapter.head().record.number
    adapter.jobs += 1
    before = len(adapter.peer.calls)
    POINTS[name](adapter, workers, adapter.document(1))
    if name not in PUBLISHED:
        assert adapter.head().record.number == parent
        assert adapter.of_job() == []
    workers.begin(adapter.document(2, parent=parent))
    result = workers.result()
    assert result is not None
    assert result.succeeded, result.message
    assert result.already_published == (name in PUBLISHED)
    assert adapter.of_job() == [parent + 1]
    version = adapter.head()
    adapter.store.verify(version)
    assert {"loss", "modal_seconds_step"} <= version.record.metrics.keys()
    calls = calls_since(adapter.peer, before)
    assert len(calls) == 1 or (name in CALLED_AGAIN and len(calls) == 2)
    assert [len(call.runs) for call in calls] == [1] * len(calls)
    assert len(adapter.folders(parent + 1)) == 1


@pytest.mark.parametrize(("upload", "when"), [(1, When.DONE), (2, When.RECEIVED)], ids=["files", "manifest"])
def test_a_worker_killed_while_it_uploads_the_parent_leaves_an_upload_that_the_next_attempt_completes(
    upload: int, when: When, adapter: ModalAdapter, workers: Attempts
) -> None:
    parent, files = adapter.head().record.number, adapter.head().record.files
    adapter.jobs += 1
    adapter.remove(parent)
    at_rpc("VolumePutFiles2", when, upload)(adapter, workers, adapter.document(1))
    assert adapter.head().record.number == parent
    workers.begin(adapter.document(2))
    result = workers.result()
    assert result is not None
    assert result.succeeded, result.message
    assert adapter.of_job() == [parent + 1]
    assert len([each for each in adapter.folders(parent) if each.name == uploaded_name(parent, files)]) == 1


@pytest.mark.parametrize("when", When, ids=lambda when: when.name)
def test_a_worker_killed_while_it_cancels_a_call_of_other_settings_leaves_that_to_the_next_attempt(
    when: When, adapter: ModalAdapter, workers: Attempts
) -> None:
    parent = adapter.head().record.number
    adapter.jobs += 1
    before = len(adapter.peer.calls)
    at_entry("after", "call-made")(adapter, workers, adapter.document(1))
    other = TRAINING.model_copy(update={"learning_rate": 2e-3})
    at_rpc("FunctionCallCancel", when)(adapter, workers, adapter.document(2, training=other))
    workers.begin(adapter.document(3, training=other))
    result = workers.result()
    assert result is not None
    assert result.succeeded, result.message
    assert adapter.of_job() == [parent + 1]
    training = adapter.head().record.training
    assert training is not None
    assert training.learning_rate == 2e-3
    assert len(calls_since(adapter.peer, before)) == 2


def test_an_answer_that_is_kept_no_longer_is_asked_for_anew_and_its_step_is_not_taken_again(
    adapter: ModalAdapter, workers: Attempts
) -> None:
    parent = adapter.head().record.number
    adapter.jobs += 1
    at_entry("before", "step-taken")(adapter, workers, adapter.document(1))
    adapter.peer.calls[-1].expired = True
    workers.begin(adapter.document(2))
    result = workers.result()
    assert result is not None
    assert result.succeeded, result.message
    assert adapter.of_job() == [parent + 1]
    assert len(adapter.folders(parent + 1)) == 1
