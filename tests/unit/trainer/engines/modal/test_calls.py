"""What the journal tells the next attempt of calls that were made before it."""

from __future__ import annotations

from pathlib import Path

import pytest

from claas_trainer.engines.modal.calls import CallJournal
from claas_trainer.store.journal import CallEnding, RunJournal


def journal(root: Path, job: str = "job-1", attempt: int = 1) -> CallJournal:
    return CallJournal(RunJournal(root, job), attempt)


def called(of: CallJournal, call: str, request: str = "this", how: CallEnding | None = None) -> None:
    of.asked(request)
    of.made(request, call)
    if how is not None:
        of.ended(call, how)


@pytest.mark.parametrize(
    ("how", "taken_up"),
    [
        (None, True),
        (CallEnding.ANSWERED, True),
        (CallEnding.FAILED, False),
        (CallEnding.LOST, False),
        (CallEnding.CANCELLED, False),
    ],
)
def test_a_call_is_taken_up_while_its_answer_may_be_had(
    how: CallEnding | None, taken_up: bool, tmp_path: Path
) -> None:
    called(journal(tmp_path), "fc-1", how=how)
    assert journal(tmp_path, attempt=2).to_take_up("this") == ("fc-1" if taken_up else None)
    assert journal(tmp_path, attempt=2).to_take_up("that") is None


def test_the_latest_call_is_taken_up_and_an_ask_whose_call_nobody_learned_is_none(tmp_path: Path) -> None:
    called(journal(tmp_path), "fc-1")
    called(journal(tmp_path), "fc-2")
    assert journal(tmp_path).to_take_up("this") == "fc-2"
    assert not journal(tmp_path).asked_in_vain("this")
    journal(tmp_path).asked("this")
    assert journal(tmp_path).asked_in_vain("this")
    assert not journal(tmp_path).asked_in_vain("that")


def test_calls_that_nobody_waits_for_are_those_of_other_requests_and_of_other_jobs(tmp_path: Path) -> None:
    called(journal(tmp_path), "fc-this")
    called(journal(tmp_path), "fc-that", "that")
    called(journal(tmp_path), "fc-failed", "that", CallEnding.FAILED)
    called(journal(tmp_path, "job-0"), "fc-of-another", "this")
    called(journal(tmp_path, "a job/with slashes"), "fc-answered", "this", CallEnding.ANSWERED)
    found = journal(tmp_path, attempt=2).unwanted("this")
    assert sorted(call for _, call in found) == ["fc-of-another", "fc-that"]
    for of, call in found:
        of.ended(call, CallEnding.CANCELLED)
    assert journal(tmp_path, attempt=2).unwanted("this") == []
    assert len(list((tmp_path / "journal").iterdir())) == 3
