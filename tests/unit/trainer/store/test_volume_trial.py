"""What mounts of object stores lack is found by doing it, and named; what a volume fails in for a while is retried.

A mount is stood in for at the edge of the operating system, with the errors that it gives there.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from claas_contract.outcome import PERMANENT_REASONS, ExitCode, FailureReason
from claas_trainer.attempt.initialise import initialise
from claas_trainer.attempt.run import run
from claas_trainer.errors import StoreError, TrainerError
from claas_trainer.messages.events import Reporter
from claas_trainer.messages.result import exit_code, failure
from claas_trainer.model.config import read_config
from claas_trainer.paths import Paths
from claas_trainer.samples.reading import read_samples
from claas_trainer.store.errors import store_error
from claas_trainer.store.trial import file_system_of
from claas_trainer.store.versions import VersionStore
from tests.builders.models import build_tiny_qwen3
from tests.unit.trainer.attempts import job
from tests.unit.trainer.conftest import document
from tests.unit.trainer.sleeping_server import sleeping_server
from tests.unit.trainer.store.test_store import FILES, record

UNSUITABLE, READ_ONLY = FailureReason.STORAGE_UNSUITABLE, FailureReason.STORAGE_READ_ONLY
FAILED, FULL = FailureReason.STORAGE_FAILED, FailureReason.STORAGE_FULL


def _always(*_: Any) -> bool:
    return True


def _folder(source: Any, *_: Any) -> bool:
    return stat.S_ISDIR((os.fstat(source) if isinstance(source, int) else Path(source).stat()).st_mode)


def _file(source: Any, *_: Any) -> bool:
    return not _folder(source)


def _in_store(path: Any, *_: Any, **__: Any) -> bool:
    return ".staging-" in str(path)


@dataclass(frozen=True)
class Fails:
    """A call of the operating system that fails."""

    call: str
    number: int
    when: Callable[..., bool] = _always

    def apply(self, patch: pytest.MonkeyPatch) -> None:
        original = getattr(os, self.call)

        def call(*arguments: Any, **named: Any) -> Any:
            if self.when(*arguments):
                raise OSError(self.number, os.strerror(self.number))
            return original(*arguments, **named)

        patch.setattr(os, self.call, call)


TABLE = [
    ("mountpoint-s3 renames nothing", Fails("rename", errno.ENOSYS), UNSUITABLE, "renaming a folder"),
    ("mountpoint-s3 refuses a mode", Fails("chmod", errno.EOPNOTSUPP, _folder), UNSUITABLE, "making a folder"),
    ("a file's mode can't be set", Fails("fchmod", errno.EPERM), UNSUITABLE, "writing and syncing a file"),
    ("gcsfuse renames no folder", Fails("rename", errno.ENOTSUP, _folder), UNSUITABLE, "renaming a folder"),
    ("gcsfuse is above its limit", Fails("rename", errno.EMFILE, _folder), UNSUITABLE, "renaming a folder"),
    ("s3fs by policy", Fails("rename", errno.EPERM, _folder), UNSUITABLE, "renaming a folder"),
    ("a union of folders", Fails("rename", errno.EXDEV, _folder), UNSUITABLE, "renaming a folder"),
    ("no sync of folders", Fails("fsync", errno.EINVAL, _folder), UNSUITABLE, "syncing a folder"),
    ("no sync of folders, another way", Fails("fsync", errno.ENOTSUP, _folder), UNSUITABLE, "syncing a folder"),
    ("no sync of files", Fails("fsync", errno.ENOSYS, _file), UNSUITABLE, "writing and syncing a file"),
    ("nothing is overwritten", Fails("replace", errno.EPERM), UNSUITABLE, "replacing a file"),
    ("nothing is removed", Fails("unlink", errno.EPERM), UNSUITABLE, "removing files"),
    ("read-only", Fails("mkdir", errno.EROFS, _in_store), READ_ONLY, "making a folder"),
    ("another user's", Fails("mkdir", errno.EACCES, _in_store), READ_ONLY, "making a folder"),
    ("read-only from now on", Fails("rename", errno.EROFS), READ_ONLY, "renaming a folder"),
    ("full", Fails("fsync", errno.ENOSPC, _file), FULL, "writing and syncing a file"),
    ("quota", Fails("mkdir", errno.EDQUOT, _in_store), FULL, "making a folder"),
    ("the server is away", Fails("rename", errno.ESTALE), FAILED, "renaming a folder"),
    ("the disk fails", Fails("fsync", errno.EIO, _file), FAILED, "writing and syncing a file"),
    ("fuse has died", Fails("listdir", errno.ENOTCONN), FAILED, ""),
]


@pytest.fixture
def store(tmp_path: Path) -> VersionStore:
    """Version 0."""
    store = VersionStore(tmp_path / "adapter")
    store.prepare(owner="job-0", attempt=1, needed_bytes=0)
    store.publish(record(0, uid="job-0"), FILES, owner="job-0")
    return store


def refusal(store: VersionStore) -> StoreError:
    with pytest.raises(StoreError) as caught:
        store.prepare(owner="job-1", attempt=1, needed_bytes=0)
    return caught.value


@pytest.mark.parametrize(("fails", "reason", "operation"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_what_a_volume_lacks_is_named_with_the_operation_and_what_time_heals_is_not_for_good(
    fails: Fails, reason: FailureReason, operation: str, store: VersionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fails.apply(patch)
        error = refusal(store)
    assert error.reason is reason
    assert operation in error.message
    assert str(store.versions) in error.message
    assert errno.errorcode[fails.number] in error.message
    assert (exit_code(failure(error)) is ExitCode.PERMANENT) == (reason is UNSUITABLE)
    store.verify(store.read(0))
    assert store.numbers() == [0]


@pytest.mark.parametrize("merges", [True, False], ids=["puts the files together", "replaces what is there"])
def test_a_volume_that_renames_onto_what_is_there_is_refused(
    merges: bool, store: VersionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def onto(source: Path, target: Path) -> None:
        if target.exists() and merges:
            for file in source.iterdir():
                shutil.copy(file, target)
            return shutil.rmtree(source)
        if target.exists():
            shutil.rmtree(target)
        return rename(source, target)

    monkeypatch.setattr(os, "rename", onto)
    error = refusal(store)
    assert error.reason is UNSUITABLE
    assert "onto another that holds files" in error.message
    assert [path.name for path in store.versions.iterdir()] == ["0"]


def test_a_volume_that_shows_a_rename_only_later_is_refused(
    store: VersionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    listdir, known = os.listdir, {path.name for path in store.versions.iterdir()}
    monkeypatch.setattr(os, "listdir", lambda path: [name for name in listdir(path) if name in known])
    error = refusal(store)
    assert error.reason is UNSUITABLE
    assert "listing and reading" in error.message


def test_a_volume_that_can_do_it_all_is_left_as_it_was(store: VersionStore) -> None:
    store.prepare(owner="job-1", attempt=1, needed_bytes=0)
    assert [path.name for path in store.versions.iterdir()] == ["0"]
    store.verify(store.read(0))


def test_what_a_killed_trial_left_is_removed_by_the_next_attempt(
    store: VersionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(os, "replace", lambda *_: os._exit(9))
        store.prepare(owner="job-1", attempt=1, needed_bytes=0)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert len(list(store.versions.iterdir())) == 3
    store.prepare(owner="job-1", attempt=2, needed_bytes=0)
    assert [path.name for path in store.versions.iterdir()] == ["0"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_qwen3(tmp_path_factory.mktemp("model"))


async def test_a_volume_that_lacks_something_is_said_at_init_and_before_any_pause(
    model: Path, paths: Paths, reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = job(model, paths)
    with monkeypatch.context() as patch:
        Fails("rename", errno.ENOSYS, _folder).apply(patch)
        with pytest.raises(StoreError, match="renaming a folder"):
            initialise(task, paths, reporter)
    initialise(task, paths, reporter)
    Fails("rename", errno.ENOSYS, _folder).apply(monkeypatch)
    with pytest.raises(StoreError, match="renaming a folder"):
        initialise(task, paths, reporter)
    with sleeping_server() as server:
        with pytest.raises(StoreError, match="renaming a folder"):
            await run(task.model_copy(update={"serving": document(server.url).serving}), paths, reporter)
        assert "POST /sleep" not in server.calls


def test_every_error_of_a_volume_is_tried_again_and_named_with_its_place() -> None:
    for number, name in errno.errorcode.items():
        error = store_error(OSError(number, os.strerror(number)), Path("/vol/a/versions"), "syncing a folder")
        assert error.reason not in PERMANENT_REASONS, name
        assert error.message.startswith("/vol/a/versions: syncing a folder: ")
        assert name in error.message


def _read_samples(paths: Paths) -> None:
    read_samples(paths.scratch / "samples.json")


def _read_config(paths: Paths) -> None:
    read_config(paths.scratch)


def _read_token(paths: Paths) -> None:
    paths.mounted_control_token(mounted=True)


@pytest.mark.parametrize("read", [_read_samples, _read_config, _read_token])
@pytest.mark.parametrize(
    ("number", "passes"),
    [
        (errno.EIO, True),
        (errno.ESTALE, True),
        (errno.ETIMEDOUT, True),
        (errno.ENOTCONN, True),
        (errno.ENOENT, False),
        (errno.EISDIR, False),
    ],
    ids=["EIO", "ESTALE", "ETIMEDOUT", "ENOTCONN", "ENOENT", "EISDIR"],
)
def test_a_volume_that_does_not_answer_is_no_fault_of_what_lies_on_it(
    number: int, passes: bool, read: Callable[[Paths], None], paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    for name in ("samples.json", "config.json"):
        (paths.scratch / name).write_text("[]")
    monkeypatch.setattr("io.open", refuse)
    with pytest.raises(TrainerError) as caught:
        read(paths)
    result = failure(caught.value)
    assert (exit_code(result) is ExitCode.RETRYABLE) == passes
    assert (result.reason is FailureReason.STORAGE_FAILED) == passes
    assert (errno.errorcode[number] in result.message) == passes


MOUNTS = """\
22 1 0:20 / / rw,relatime - overlay overlay rw
30 22 0:40 / /var/lib/claas/storage rw - ext4 /dev/sda rw
31 30 0:41 / /var/lib/claas/storage rw,nosuid shared:1 - fuse.s3fs s3fs rw
32 22 0:42 / /var/lib/claas/my\\040model ro - nfs4 server:/x rw
not a line
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/claas/storage/team/a", "fuse.s3fs"),
        ("/var/lib/claas/storages", "overlay"),
        ("/var/lib/claas/my model/x", "nfs4"),
    ],
)
def test_the_type_of_the_mount_is_that_of_the_one_on_top(path: str, kind: str, tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert file_system_of(Path(path), mounts) == kind
    assert file_system_of(Path(path), tmp_path / "absent") is None
