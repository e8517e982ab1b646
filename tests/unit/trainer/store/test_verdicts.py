"""What serving said of a version is kept with it, and holds for whoever finds it there."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.version import VersionVerdict
from claas_trainer.attempt.initialise import initialise
from claas_trainer.attempt.run import run
from claas_trainer.errors import StoreError, VersionRejectedError
from claas_trainer.messages.events import Published, Reporter, decode
from claas_trainer.messages.result import failure
from claas_trainer.paths import Paths
from claas_trainer.store.verdict import VERDICT_FILE, Verdict, read_verdict, write_verdict
from claas_trainer.store.versions import VersionStore
from tests.builders.models import build_tiny_qwen3
from tests.unit.trainer.attempts import attempt, job, store
from tests.unit.trainer.conftest import document
from tests.unit.trainer.sleeping_server import sleeping_server
from tests.unit.trainer.store.test_store import FILES, record

_WRITE_FILE = "claas_trainer.store.annotations.write_file"
_FSYNC_FOLDER = "claas_trainer.store.annotations.fsync_folder"
REJECTED, SERVED, UNTRIED = VersionVerdict.REJECTED, VersionVerdict.SERVED, VersionVerdict.UNTRIED


@pytest.fixture
def versions(tmp_path: Path) -> VersionStore:
    """Versions 0, 1 and 2, each of a job of its own."""
    store = VersionStore(tmp_path / "adapter")
    store.prepare(owner="job-0", attempt=1, needed_bytes=0)
    for number in range(3):
        store.publish(record(number, uid=f"job-{number}"), FILES, owner=f"job-{number}")
    return store


@pytest.mark.parametrize(
    ("verdicts", "head"),
    [
        ({}, 2),
        ({2: SERVED}, 2),
        ({2: REJECTED}, 1),
        ({1: REJECTED}, 2),
        ({1: REJECTED, 2: REJECTED}, 0),
        ({0: REJECTED, 1: REJECTED, 2: REJECTED}, None),
    ],
)
def test_the_head_is_the_version_that_was_published_last_and_not_refused(
    verdicts: dict[int, VersionVerdict], head: int | None, versions: VersionStore
) -> None:
    for number, verdict in verdicts.items():
        write_verdict(versions.versions / str(number), verdict, "too large a rank")
    found = versions.head()
    assert (found.record.number if found else None) == head
    assert versions.next_number() == 3


@pytest.mark.parametrize(
    ("parents", "refused", "head"),
    [((None, 0, 1), 1, 0), ((None, 0, 0), 1, 2), ((None, 0, 1), 2, 1), ((None, 0, 7), 1, 2), ((None, 2, 1), 0, 2)],
    ids=["trained-from-it", "beside-it", "before-it", "its-parent-is-gone", "a-circle"],
)
def test_nothing_that_descends_from_a_refused_version_is_the_head(
    parents: tuple[int | None, ...], refused: int, head: int, tmp_path: Path
) -> None:
    store = VersionStore(tmp_path / "adapter")
    store.prepare(owner="job", attempt=1, needed_bytes=0)
    for number, parent in enumerate(parents):
        store.publish(record(number, uid="job", parent=parent), FILES, owner="job")
    write_verdict(store.versions / str(refused), REJECTED)
    found = store.head()
    assert found is not None
    assert found.record.number == head


def test_a_verdict_is_no_part_of_the_version_s_digest_and_the_last_one_holds(versions: VersionStore) -> None:
    digest = versions.read(2).record.digest
    assert versions.read(2).verdict.verdict is UNTRIED
    for verdict in (SERVED, REJECTED):
        write_verdict(versions.versions / "2", verdict, "why")
        read = versions.read(2)
        versions.verify(read)
        assert (read.record.digest, read.verdict.verdict, read.verdict.why) == (digest, verdict, "why")
        assert read.published("a/versions/2").verdict is verdict
    assert (read.folder / VERDICT_FILE).stat().st_mode & stat.S_IROTH


@pytest.mark.parametrize("content", [b"", b"{", b'{"verdict": "Maybe"}', b"[]", b"\xff\xfe", b'{"why": "x"}'])
def test_a_verdict_that_makes_no_sense_costs_no_version(content: bytes, versions: VersionStore) -> None:
    (versions.versions / "2" / VERDICT_FILE).write_bytes(content)
    newest = versions.head()
    assert newest is not None
    assert (newest.record.number, newest.verdict.verdict) == (2, UNTRIED)


def test_a_verdict_of_a_later_release_is_read_as_far_as_it_is_known(versions: VersionStore) -> None:
    (versions.versions / "2" / VERDICT_FILE).write_text('{"verdict": "Rejected", "judge": "canary"}')
    assert versions.read(2).rejected


def test_a_verdict_that_the_volume_does_not_give_is_an_error_of_the_volume(versions: VersionStore) -> None:
    (versions.versions / "2" / VERDICT_FILE).mkdir()
    with pytest.raises(StoreError, match="EISDIR") as caught:
        versions.head()
    assert caught.value.reason is FailureReason.STORAGE_FAILED


def _dies_at(step: str, patch: pytest.MonkeyPatch) -> None:
    """Let the writer of an annotation be killed at this step."""

    def die(*_: object) -> None:
        os._exit(9)

    if step == "write":
        patch.setattr(_WRITE_FILE, die)
    elif step == "rename":
        patch.setattr(Path, "replace", die)
    else:
        patch.setattr(_FSYNC_FOLDER, die)


@pytest.mark.parametrize(("step", "found"), [("write", SERVED), ("rename", SERVED), ("sync", REJECTED)])
def test_a_writer_that_is_killed_leaves_the_old_verdict_or_the_new_one(
    step: str, found: VersionVerdict, versions: VersionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = versions.versions / "2"
    write_verdict(folder, SERVED)
    child = os.fork()
    if child == 0:
        _dies_at(step, monkeypatch)
        write_verdict(folder, REJECTED, "why")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert read_verdict(folder).verdict is found
    versions.verify(versions.read(2))
    write_verdict(folder, REJECTED, "again")
    assert read_verdict(folder).why == "again"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_qwen3(tmp_path_factory.mktemp("model"))


async def test_a_version_that_serving_refuses_is_neither_made_the_newest_again_nor_trained_from_nor_tried_again(
    model: Path, paths: Paths
) -> None:
    reading, report_to = os.pipe()
    told = Reporter(report_to)
    with sleeping_server() as server:
        task = job(model, paths).model_copy(update={"serving": document(server.url).serving})
        with pytest.raises(VersionRejectedError) as caught:
            await attempt(task, paths, told)
        loads = server.calls.count("POST /v1/load_lora_adapter")
        with pytest.raises(VersionRejectedError, match="refused by serving before") as again:
            await run(task, paths, told)
        assert server.calls.count("POST /v1/load_lora_adapter") == loads
    result = failure(caught.value)
    assert result.version is not None
    assert (result.version.number, result.version.verdict, result.reason) == (
        1,
        REJECTED,
        FailureReason.VERSION_REJECTED,
    )
    assert again.value.version == result.version
    assert store(paths).read(1).verdict.why == result.message
    anew = initialise(task, paths, told)
    assert anew.version is not None
    assert (anew.version.number, anew.version.verdict) == (0, UNTRIED)
    with pytest.raises(VersionRejectedError, match="no step starts from it") as child:
        await run(job(model, paths, uid="job-2", parent=1), paths, told)
    assert (child.value.reason, child.value.version) == (FailureReason.PARENT_REJECTED, result.version)
    after = await run(job(model, paths, uid="job-3", parent=0), paths, told)
    assert after.version is not None
    assert after.version.number == 2
    os.close(report_to)
    with os.fdopen(reading, "rb") as lines:
        events = [decode(line) for line in lines]
    verdicts = [event.version.verdict for event in events if isinstance(event, Published)]
    # Version 0, version 1 before and after it was refused; found refused; 0 again; 2.
    assert verdicts == [UNTRIED, UNTRIED, REJECTED, REJECTED, UNTRIED, UNTRIED]


@pytest.mark.parametrize(("served_by", "verdict"), [([], UNTRIED), (["vllm-0"], SERVED)])
async def test_a_version_is_served_once_a_pod_serves_it_and_not_when_none_could_be_asked(
    served_by: list[str],
    verdict: VersionVerdict,
    model: Path,
    paths: Paths,
    reporter: Reporter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def swap(*_: object) -> list[str]:
        return served_by

    monkeypatch.setattr("claas_trainer.attempt.publication.swap", swap)
    with sleeping_server() as server:
        task = job(model, paths).model_copy(update={"serving": document(server.url).serving})
        result = await attempt(task, paths, reporter)
        assert result.version is not None
        assert result.version.verdict is verdict
        assert store(paths).read(1).verdict.verdict is verdict
        # A trainer that died right after the flip: the next attempt comes to the same.
        (store(paths).read(1).folder / VERDICT_FILE).unlink(missing_ok=True)
        again = await run(task, paths, reporter)
    assert again.already_published
    assert again.version == result.version
    assert store(paths).read(1).verdict.verdict is verdict


async def test_a_refusal_that_cannot_be_noted_is_told_all_the_same_and_says_so(
    model: Path, paths: Paths, reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, content: object) -> str:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(_WRITE_FILE, refuse)
    with sleeping_server() as server:
        task = job(model, paths).model_copy(update={"serving": document(server.url).serving})
        with pytest.raises(VersionRejectedError, match=r"verdict\.json") as caught:
            await attempt(task, paths, reporter)
    assert caught.value.version.verdict is REJECTED


def _unchanged(folder: Path) -> None:
    return


def _without_a_verdict(folder: Path) -> None:
    (folder / VERDICT_FILE).unlink()


@pytest.mark.parametrize(("change", "newest"), [(_unchanged, 1), (_without_a_verdict, 2)])
def test_removing_the_verdict_lets_a_version_be_tried_again(
    change: Callable[[Path], None], newest: int, versions: VersionStore
) -> None:
    write_verdict(versions.versions / "2", REJECTED)
    change(versions.versions / "2")
    found = versions.head()
    assert found is not None
    assert found.record.number == newest


def test_a_long_refusal_is_cut() -> None:
    with pytest.MonkeyPatch.context() as patch:
        written: list[bytes] = []
        patch.setattr("claas_trainer.store.verdict.write_annotation", lambda folder, name, data: written.append(data))
        write_verdict(Path("/nowhere"), REJECTED, "x" * 100_000)
    assert len(Verdict.model_validate_json(written[0]).why) == 1024
