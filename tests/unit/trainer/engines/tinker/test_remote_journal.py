"""What the journal tells the next attempt of a step by a service."""

from __future__ import annotations

from pathlib import Path

import pytest

from claas_trainer.engines.tinker.journal import Checkpoints, RemoteJournal
from claas_trainer.store.journal import RemoteCall, RunJournal

SAVED = Checkpoints("run-1", "tinker://run-1/weights/x", "tinker://run-1/sampler_weights/x", {"loss": 0.5})


def stepping(journal: RemoteJournal, run: str = "run-1", start: str = "start") -> None:
    journal.asked(RemoteCall.RUN, start, "session", name="x")
    journal.done(RemoteCall.RUN, start, "session", run)
    journal.asked(RemoteCall.STEP, start, "session", run, sequence=1, request="digest")


def saving(journal: RemoteJournal) -> None:
    journal.asked(RemoteCall.SAVE, "start", "session", "run-1", sequence=5, name="x", metrics=SAVED.metrics)


def test_a_run_is_left_from_its_step_on_and_a_finished_save_is_found_with_its_metrics(tmp_path: Path) -> None:
    journal = RemoteJournal(RunJournal(tmp_path, "job-1"), 1)
    assert journal.left("start").runs == ()
    stepping(journal)
    (run,) = journal.left("start").runs
    assert (run.run, run.session, run.request, run.saving, run.lost) == ("run-1", "session", "digest", None, False)
    saving(journal)
    (run,) = journal.left("start").runs
    assert run.saving is not None
    assert (run.request, run.saving.sequence, run.saving.metrics) == ("digest", 5, {"loss": 0.5})
    assert journal.left("start").saved is None
    journal.done(RemoteCall.SAVE, "start", "session", "run-1", SAVED)
    assert journal.left("start").saved == SAVED


def test_what_began_from_elsewhere_is_of_no_use_and_a_lost_run_is_told_as_such(tmp_path: Path) -> None:
    journal = RemoteJournal(RunJournal(tmp_path, "job-1"), 1)
    stepping(journal, "elsewhere", "another start")
    stepping(journal, "run-1")
    stepping(journal, "run-2")
    journal.lost("run-2")
    assert [(run.run, run.lost) for run in journal.left("start").runs] == [("run-2", True), ("run-1", False)]


def test_a_journal_that_can_t_be_written_leaves_nothing_to_take_up_and_stops_no_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "journal").write_text("not a folder")
    journal = RemoteJournal(RunJournal(tmp_path, "job-1"), 1)
    stepping(journal)
    saving(journal)
    left = journal.left("start")
    assert (left.saved, left.runs) == (None, ())
    assert capsys.readouterr().out.count("journal-not-kept") == 4
