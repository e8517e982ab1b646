"""An attempt killed at any point of its work on the volume, and the attempt after it: one version of a job.

Engine and samples are stand-ins that compute nothing, so that every point can be tried; what touches the volume is
the real one.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from claas_contract.engine import DistillBatchRequestPayload, DistillResponse, TokenisedSample
from claas_contract.input import TrainerInput
from claas_crds.v1alpha1.lora import LoraSpec
from claas_crds.v1alpha1.step import SampleCounts
from claas_trainer.attempt import run as runs
from claas_trainer.attempt.batch import Batch
from claas_trainer.attempt.recover import recover
from claas_trainer.engines.base import EngineReadiness, EngineTask, TrainedVersion, TrainingEngine
from claas_trainer.messages.events import Reporter
from claas_trainer.paths import Paths
from claas_trainer.store.content import Bytes
from claas_trainer.store.journal import JOURNAL_FOLDER, RunJournal, VersionPublished
from claas_trainer.store.versions import VersionStore
from tests.unit.trainer.attempts import store
from tests.unit.trainer.conftest import document
from tests.unit.trainer.store.test_store import FILES, record

UID = "job-1"
_FILE_EVENTS = ("open", "os.mkdir", "os.chmod", "os.rename", "os.rmdir", "os.remove")
PAYLOAD = DistillBatchRequestPayload(
    lora_id="user/coder",
    samples=(TokenisedSample(student_prompt_ids=(1,), teacher_prompt_ids=(1, 2), response_ids=(3,)),),
)


class Idle(TrainingEngine):
    """Computes nothing; its version is two small files."""

    async def prepare(self, payload: DistillBatchRequestPayload, task: EngineTask) -> EngineReadiness:
        return EngineReadiness(version_bytes=1)

    async def distill(self, payload: DistillBatchRequestPayload) -> DistillResponse:
        return DistillResponse(lora_id=f"{payload.lora_id}@1")

    async def trained(self) -> TrainedVersion:
        return TrainedVersion({"adapter_model.safetensors": Bytes(b"w" * 100), "other": Bytes(b"o")}, {}, {})


async def _no_texts(*arguments: object) -> Batch:
    return Batch(PAYLOAD, SampleCounts(total=1), Path("/nowhere"))


@pytest.fixture
def adapter(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> VersionStore:
    """Version 0, for attempts whose engine computes nothing."""
    monkeypatch.setattr(runs, "make_engine", lambda name: Idle())
    monkeypatch.setattr(runs, "make_batch", _no_texts)
    # It has a test of its own, and would double the points.
    monkeypatch.setattr("claas_trainer.store.versions.try_volume", lambda *arguments: None)
    versions = store(paths)
    versions.prepare(owner="job-0", attempt=1, needed_bytes=0)
    versions.publish(record(0, uid="job-0"), FILES, owner="job-0")
    return versions


def task(paths: Paths, attempt: int, parent: int = 0) -> TrainerInput:
    samples = paths.scratch / "samples.json"
    samples.write_text('[{"user_prompt": "q", "response": "my private answer", "feedback": "f"}]')
    of = document(uid=UID)
    jobs = [job.model_copy(update={"attempt": attempt}) for job in of.jobs]
    return of.model_copy(update={"lora": LoraSpec(), "jobs": jobs, "parent": parent, "samples_file": str(samples)})


def _nth_file_event(root: Path, calls: int) -> None:
    """Be killed at the `calls`-th call of the file system below the adapter's folder."""
    left = calls

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in ("open", "os.mkdir", "os.chmod", "os.rename", "os.rmdir", "os.remove") and str(root) in str(
            arguments
        ):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def _half_of_the_nth_write(root: Path, calls: int) -> None:
    """Be killed when half of the `calls`-th write is done."""
    left, write = calls, os.write

    def half(descriptor: int, data: bytes | memoryview) -> int:
        nonlocal left
        if not Path(f"/proc/self/fd/{descriptor}").readlink().is_relative_to(root):
            return write(descriptor, data)
        left -= 1
        if left == 0:
            whole = memoryview(data)
            write(descriptor, whole[: len(whole) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return write(descriptor, data)

    pytest.MonkeyPatch().setattr(os, "write", half)


def _killed(paths: Paths, reporter: Reporter, doomed: Callable[[Path, int], None], calls: int) -> bool:
    """Make the first attempt in a child; whether that was killed."""
    of = task(paths, 1)
    child = os.fork()
    if child == 0:
        try:
            doomed(store(paths).root, calls)
            asyncio.run(runs.run(of, paths, reporter))
            os._exit(0)
        finally:
            # Never back into the tests.
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


def _reset(adapter: VersionStore) -> None:
    for folder in (adapter.versions / "1", adapter.root / JOURNAL_FOLDER):
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


@pytest.mark.parametrize("doomed", [_nth_file_event, _half_of_the_nth_write])
def test_an_attempt_killed_at_any_point_and_the_one_after_it_make_one_version(
    doomed: Callable[[Path, int], None], adapter: VersionStore, paths: Paths, reporter: Reporter
) -> None:
    stories: list[str] = []
    for calls in range(1, 120):
        killed = _killed(paths, reporter, doomed, calls)
        was_there = 1 in adapter.numbers()
        looked = recover(task(paths, 1), paths, reporter)
        assert (looked.version is not None) == was_there
        stories.append(looked.message)
        again = asyncio.run(runs.run(task(paths, 2), paths, reporter))
        assert again.already_published == was_there
        assert adapter.numbers() == [0, 1]
        assert store(paths).read(1).record.jobs[0].uid == UID
        entries = RunJournal(adapter.root, UID).entries()
        # Whatever the first attempt left, the journal says in the end that it is published, or was never begun.
        assert not entries or isinstance(entries[-1], VersionPublished)
        _reset(adapter)
        if not killed:
            break
    assert not killed
    # From nothing, over a step that was begun and one that was taken, to a version: each was met.
    for word in (
        "no version that is whole",
        "did not finish its step",
        "took its step and published",
        "has published",
    ):
        assert any(word in said for said in stories), word


async def test_a_volume_without_room_for_a_journal_costs_no_step_and_makes_no_second_version(
    adapter: VersionStore, paths: Paths, reporter: Reporter
) -> None:
    (adapter.root / JOURNAL_FOLDER).write_text("in its place")
    first = await runs.run(task(paths, 1), paths, reporter)
    again = await runs.run(task(paths, 2), paths, reporter)
    assert (first.already_published, again.already_published) == (False, True)
    assert adapter.numbers() == [0, 1]


async def test_the_journal_tells_the_truth_holds_no_text_and_goes_when_the_next_job_begins(
    adapter: VersionStore, paths: Paths, reporter: Reporter
) -> None:
    await runs.run(task(paths, 1), paths, reporter)
    journal = RunJournal(adapter.root, UID)
    assert [entry.kind for entry in journal.entries()] == ["begun", "step-taken", "published"]
    assert "private" not in journal.path.read_text()
    later = task(paths, 1, parent=1)
    other = [job.model_copy(update={"uid": "job-2"}) for job in later.jobs]
    later = later.model_copy(update={"jobs": other})
    await runs.run(later, paths, reporter)
    assert adapter.numbers() == [0, 1, 2]
    assert not journal.path.exists()
    assert RunJournal(adapter.root, "job-2").entries()
