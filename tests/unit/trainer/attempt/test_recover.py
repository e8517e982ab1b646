"""Looking for what a job has published, after its trainer died at any point before its report."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from claas_contract.input import TrainerInput
from claas_contract.outcome import ExitCode, FailureReason, TrainerCommand
from claas_contract.result import TrainerResult
from claas_crds.v1alpha1.version import VersionVerdict
from claas_trainer.attempt.recover import recover
from claas_trainer.errors import TrainerError
from claas_trainer.messages.events import Reporter
from claas_trainer.paths import Paths
from claas_trainer.store.content import fsync_folder
from claas_trainer.store.verdict import write_verdict
from claas_trainer.store.versions import VersionStore
from tests.unit.trainer.attempts import store
from tests.unit.trainer.conftest import document
from tests.unit.trainer.store.test_store import FILES, record

_FSYNC_FOLDER = "claas_trainer.store.versions.fsync_folder"
_FILE_EVENTS = ("open", "os.mkdir", "os.chmod", "os.rename", "os.rmdir", "os.remove")


@pytest.fixture
def adapter(paths: Paths) -> VersionStore:
    """Version 0 of another job."""
    versions = store(paths)
    versions.prepare(owner="job-0", attempt=1, needed_bytes=0)
    versions.publish(record(0, uid="job-0"), FILES, owner="job-0")
    return versions


def look(paths: Paths, reporter: Reporter, *, uid: str = "job-1") -> int | None:
    task = document(uid=uid).model_copy(update={"parent": None, "samples_file": None, "serving": None})
    result = recover(task, paths, reporter)
    assert result.succeeded
    assert result.already_published == (result.version is not None)
    return result.version.number if result.version else None


def _publish_and_die(adapter: VersionStore, calls: int) -> bool:
    """Publish version 1 of job-1 in a child that is killed at its `calls`-th call of the file system, or at the sync
    of the versions' folder (`calls` 0); whether the child lived long enough to end by itself."""
    child = os.fork()
    if child == 0:
        left = calls

        def count(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal left
            if event in _FILE_EVENTS and str(adapter.root) in str(arguments):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        def sync(folder: Path) -> None:
            if folder == adapter.versions:
                os.kill(os.getpid(), signal.SIGKILL)

        if calls:
            sys.addaudithook(count)
        else:
            pytest.MonkeyPatch().setattr(_FSYNC_FOLDER, sync)
        adapter.publish(record(1, parent=0), FILES, owner="job-1")
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _crash_points() -> Iterator[int]:
    yield from range(1, 40)


def test_a_writer_killed_at_any_call_leaves_a_version_that_is_found_or_none_and_never_two(
    adapter: VersionStore, paths: Paths, reporter: Reporter
) -> None:
    found_at: list[int | None] = []
    for calls in _crash_points():
        lived = _publish_and_die(adapter, calls)
        found = look(paths, reporter)
        found_at.append(found)
        assert (found is not None) == (1 in adapter.numbers())
        # The next attempt: what is there is not made twice, what is not there is made.
        adapter.prepare(owner="job-1", attempt=2, needed_bytes=0)
        publication = adapter.publish(record(1, parent=0), FILES, owner="job-1")
        assert publication.created == (found is None)
        assert sorted(path.name for path in adapter.versions.iterdir()) == ["0", "1"]
        for path in (adapter.versions / "1").iterdir():
            path.unlink()
        (adapter.versions / "1").rmdir()
        if lived:
            break
    assert lived
    assert len(found_at) > 8
    # Nothing before the rename, the version from then on.
    assert found_at == sorted(found_at, key=lambda number: number is not None)
    assert found_at[-1] == 1


def test_a_name_that_its_writer_did_not_sync_is_synced_before_anyone_is_told(
    adapter: VersionStore, paths: Paths, reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not _publish_and_die(adapter, 0)
    synced: list[Path] = []

    def note(folder: Path) -> None:
        synced.append(folder)
        fsync_folder(folder)

    monkeypatch.setattr(_FSYNC_FOLDER, note)
    assert look(paths, reporter) == 1
    assert synced == [adapter.versions]


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda version: None, 1),
        (lambda version: (version / "adapter_model.safetensors").write_bytes(b"wEights"), None),
        (lambda version: (version / "adapter_config.json").unlink(), None),
        (lambda version: (version / "version.json").write_text("{"), None),
        (lambda version: (version / "version.json").unlink(), None),
        (lambda version: write_verdict(version, VersionVerdict.SERVED), 1),
        (lambda version: write_verdict(version, VersionVerdict.REJECTED, "too large a rank"), None),
    ],
    ids=["whole", "changed", "a file missing", "record unreadable", "record missing", "served", "refused"],
)
def test_only_a_whole_version_that_was_not_refused_is_recovered(
    damage: object, found: int | None, adapter: VersionStore, paths: Paths, reporter: Reporter
) -> None:
    version = adapter.publish(record(1, parent=0), FILES, owner="job-1").version.folder
    assert callable(damage)
    damage(version)
    before = sorted(adapter.root.rglob("*"))
    assert look(paths, reporter) == found
    assert sorted(adapter.root.rglob("*")) == before


def test_it_says_why_a_version_of_the_job_is_not_given(
    adapter: VersionStore, paths: Paths, reporter: Reporter
) -> None:
    version = adapter.publish(record(1, parent=0), FILES, owner="job-1").version.folder
    write_verdict(version, VersionVerdict.REJECTED, "too large a rank")
    assert "too large a rank" in recover(document(uid="job-1"), paths, reporter).message


def test_other_jobs_versions_are_not_taken_for_the_job_s(
    adapter: VersionStore, paths: Paths, reporter: Reporter
) -> None:
    adapter.publish(record(1, uid="job-2", parent=0), FILES, owner="job-2")
    assert look(paths, reporter, uid="job-1") is None
    assert look(paths, reporter, uid="job-2") == 1
    assert look(paths, reporter, uid="job-0") == 0


def test_a_volume_without_the_adapter_s_folder_has_no_version_and_stays_as_it_is(
    paths: Paths, reporter: Reporter
) -> None:
    assert look(paths, reporter) is None
    assert list(paths.storage.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"jobs": []}, FailureReason.INVALID_INPUT), ({"storage_path": "../other"}, FailureReason.INVALID_INPUT)],
)
def test_a_wrong_input_says_so(
    changes: dict[str, object], reason: FailureReason, paths: Paths, reporter: Reporter
) -> None:
    task: TrainerInput = document().model_copy(update=changes)
    with pytest.raises(TrainerError) as caught:
        recover(task, paths, reporter)
    assert caught.value.reason is reason


def test_the_pod_that_looks_needs_the_volume_alone(adapter: VersionStore, paths: Paths, tmp_path: Path) -> None:
    adapter.publish(record(1, parent=0), FILES, owner="job-1")
    task = document(uid="job-1").model_copy(update={"parent": None, "samples_file": None, "serving": None})
    input_path = paths.scratch / "input.json"
    input_path.write_text(task.model_dump_json())
    # Whoever imports one of these in this pod fails.
    absent = tmp_path / "absent"
    absent.mkdir()
    for name in ("torch", "transformers", "peft", "safetensors"):
        (absent / f"{name}.py").write_text("raise ImportError(__name__)")
    environment = dict(os.environ) | {
        "PYTHONPATH": os.pathsep.join([str(absent), *sys.path]),
        "CLAAS_STORAGE_DIRECTORY": str(paths.storage),
        "CLAAS_SCRATCH_DIRECTORY": str(paths.scratch),
        "CLAAS_TERMINATION_MESSAGE_FILE": str(paths.termination_message),
        "CLAAS_PROGRESS_PORT": str(paths.progress_port),
    }
    command = [sys.executable, "-m", "claas_trainer", TrainerCommand.RECOVER.value, "--input", str(input_path)]
    done = subprocess.run(command, env=environment, timeout=60)
    assert done.returncode == ExitCode.SUCCEEDED
    result = TrainerResult.model_validate_json(paths.termination_message.read_text())
    assert result.version is not None
    assert (result.version.number, [job.uid for job in result.version.jobs]) == (1, ["job-1"])
