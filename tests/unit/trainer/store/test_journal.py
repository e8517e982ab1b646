"""The journal of a job's attempts: every whole line counts whatever became of others, and it never fails a step."""

from __future__ import annotations

import errno
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claas_trainer.store.journal import (
    JOURNAL_FOLDER,
    KEPT_JOURNALS,
    AttemptBegun,
    Entry,
    RunJournal,
    StepTaken,
    VersionPublished,
    story,
)

AT = datetime(2026, 5, 4, 10, 3, tzinfo=UTC)
BEGUN = AttemptBegun(attempt=1, at=AT, engine="local", parent=3, version=4)
AGAIN = AttemptBegun(attempt=2, at=AT, engine="local", parent=3, version=4)
TAKEN = StepTaken(attempt=1, at=AT)
PUBLISHED = VersionPublished(attempt=1, at=AT, version=4)
BEGAN = "began at 2026-05-04 10:03:00 UTC from version 3"
WORK: list[Entry] = [BEGUN, TAKEN, PUBLISHED]


def written(root: Path, uid: str, *entries: Entry) -> RunJournal:
    journal = RunJournal(root, uid)
    for entry in entries:
        journal.keep(entry)
    return journal


def test_what_was_kept_is_read_in_order_and_by_the_job_s_name_alone(tmp_path: Path) -> None:
    written(tmp_path, "job-1", *WORK)
    written(tmp_path, "job-2", AGAIN)
    assert RunJournal(tmp_path, "job-1").entries() == tuple(WORK)
    assert RunJournal(tmp_path, "job-2").entries() == (AGAIN,)
    assert RunJournal(tmp_path, "job-3").entries() == ()


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 2000), tail=st.binary(max_size=80), entries=st.lists(st.sampled_from(WORK), max_size=6))
def test_a_line_cut_short_or_spoilt_costs_itself_alone(
    cut: int, tail: bytes, entries: list[Entry], tmp_path_factory: pytest.TempPathFactory
) -> None:
    journal = written(tmp_path_factory.mktemp("adapter"), "job-1", *entries)
    if entries:
        data = journal.path.read_bytes()
        journal.path.write_bytes(data[:cut] + tail.replace(b"{", b""))
        whole = data[:cut].count(b"}")
        kept = tuple(entries[:whole])
        # What follows the last brace on its line may spoil that line.
        assert journal.entries() in (kept, kept[:-1])
        kept = journal.entries()
    else:
        kept = ()
    journal.keep(AGAIN)
    assert journal.entries() == (*kept, AGAIN)


def test_entries_of_a_later_trainer_are_passed_over(tmp_path: Path) -> None:
    journal = written(tmp_path, "job-1", BEGUN)
    with journal.path.open("ab") as file:
        file.write(b'{"kind":"billed","attempt":1,"at":"2026-05-04T10:03:00Z"}\n')
        file.write(TAKEN.model_dump_json().replace("}", ',"later":1}').encode() + b"\n")
    assert journal.entries() == (BEGUN, TAKEN)


def test_the_other_jobs_journals_are_found_whatever_their_jobs_are_called(tmp_path: Path) -> None:
    written(tmp_path, "job-1", BEGUN)
    written(tmp_path, "job-2", AGAIN)
    written(tmp_path, "../job", *WORK)
    others = RunJournal(tmp_path, "job-1").others()
    assert {journal.entries() for journal in others} == {(AGAIN,), tuple(WORK)}
    for journal in others:
        journal.keep(TAKEN)
    assert RunJournal(tmp_path, "job-2").entries() == (AGAIN, TAKEN)
    assert RunJournal(tmp_path, "../job").entries() == (*WORK, TAKEN)


@pytest.mark.parametrize("uid", ["../../elsewhere", "", "a/b", ".hidden", "x" * 300, "\N{SNOWMAN}"])
def test_no_identifier_leads_out_of_the_folder(uid: str, tmp_path: Path) -> None:
    journal = written(tmp_path, uid, BEGUN)
    assert journal.entries() == (BEGUN,)
    assert [path.parent for path in tmp_path.rglob("*.jsonl")] == [tmp_path / JOURNAL_FOLDER]


def test_a_file_grown_beyond_all_measure_is_read_at_its_end(tmp_path: Path) -> None:
    journal = written(tmp_path, "job-1", BEGUN)
    journal.path.write_bytes(journal.path.read_bytes() * 2000)
    journal.keep(TAKEN)
    entries = journal.entries()
    assert entries[-1] == TAKEN
    assert len(entries) < 1000


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.ESTALE])
def test_a_volume_that_takes_no_line_fails_nothing(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = written(tmp_path, "job-1", BEGUN)

    def refuse(descriptor: int, data: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse)
        journal.keep(TAKEN)
    assert errno.errorcode[number] in capsys.readouterr().out
    assert journal.entries() == (BEGUN,)
    journal.keep(PUBLISHED)
    assert journal.entries() == (BEGUN, PUBLISHED)


def test_a_full_volume_that_takes_half_a_line_costs_that_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = written(tmp_path, "job-1", BEGUN)
    real, calls = os.write, iter([True, False])

    def half(descriptor: int, data: memoryview) -> int:
        if next(calls):
            return real(descriptor, data[:20])
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        journal.keep(TAKEN)
    journal.keep(PUBLISHED)
    assert journal.entries() == (BEGUN, PUBLISHED)


def test_something_else_in_the_folder_s_place_is_no_error(tmp_path: Path) -> None:
    (tmp_path / JOURNAL_FOLDER).write_text("not ours")
    journal = written(tmp_path, "job-1", BEGUN)
    journal.prune_others()
    assert journal.entries() == ()
    assert (tmp_path / JOURNAL_FOLDER).read_text() == "not ours"


def test_journals_of_published_jobs_go_and_others_are_few(tmp_path: Path) -> None:
    own = written(tmp_path, "own", *WORK)
    for number in range(5):
        written(tmp_path, f"done-{number}", *WORK)
    for number in range(KEPT_JOURNALS + 3):
        journal = written(tmp_path, f"failed-{number}", BEGUN)
        os.utime(journal.path, (number, number))
    own.prune_others()
    names = {path.stem for path in (tmp_path / JOURNAL_FOLDER).iterdir()}
    assert names == {"own", *(f"failed-{number}" for number in range(3, KEPT_JOURNALS + 3))}
    RunJournal(tmp_path / "absent", "own").prune_others()


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([], ""),
        ([TAKEN], ""),
        ([BEGUN], f"attempt 1 {BEGAN} and did not finish its step"),
        (
            [BEGUN, TAKEN],
            f"attempt 1 {BEGAN}, took its step and published nothing",
        ),
        (WORK, f"attempt 1 {BEGAN} and published version 4"),
        (
            [BEGUN, TAKEN, AGAIN],
            f"attempt 2 {BEGAN} and did not finish its step",
        ),
    ],
    ids=["nothing", "its beginning lost", "begun", "step taken", "published", "the last attempt counts"],
)
def test_people_are_told_how_far_the_last_attempt_came(entries: list[Entry], said: str) -> None:
    assert story(entries) == said
