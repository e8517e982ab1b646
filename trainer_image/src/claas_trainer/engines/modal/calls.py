"""The run journal as the Modal engine uses it: which calls the attempts at jobs have made, and how they ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from claas_trainer.store.journal import CallAsked, CallEnded, CallEnding, CallMade, Entry, RunJournal


@dataclass(frozen=True)
class KnownCall:
    """A call that was made, and how it ended."""

    call: str
    request: str
    """Digest of the request."""
    ending: CallEnding | None = None
    """None: it may be under way."""


def calls_in(entries: Sequence[Entry]) -> list[KnownCall]:
    """The calls of a job's attempts, latest first."""
    endings = {entry.call: entry.how for entry in entries if isinstance(entry, CallEnded)}
    made = [entry for entry in reversed(entries) if isinstance(entry, CallMade)]
    return [KnownCall(entry.call, entry.request, endings.get(entry.call)) for entry in made]


class CallJournal:
    """The journal of one attempt at a job."""

    def __init__(self, journal: RunJournal, attempt: int) -> None:
        self._journal = journal
        self._attempt = attempt

    def to_take_up(self, request: str) -> str | None:
        """The latest call of an earlier attempt for this request whose answer may still be had."""
        usable = (None, CallEnding.ANSWERED)
        calls = calls_in(self._journal.entries())
        return next((each.call for each in calls if each.request == request and each.ending in usable), None)

    def asked_in_vain(self, request: str) -> bool:
        """Whether an attempt died before it learned which call it had made last for this request, if any."""
        last = None
        for entry in self._journal.entries():
            if isinstance(entry, CallAsked | CallMade) and entry.request == request:
                last = entry
        return isinstance(last, CallAsked)

    def unwanted(self, request: str) -> list[tuple[CallJournal, str]]:
        """Calls that may be under way though nobody will ask for their answer: those of this job for another request,
        and those of other jobs, which have been given up; each with its job's journal."""
        own = [(self, each) for each in calls_in(self._journal.entries()) if each.request != request]
        others = [
            (CallJournal(journal, self._attempt), each)
            for journal in self._journal.others()
            for each in calls_in(journal.entries())
        ]
        return [(journal, each.call) for journal, each in (*own, *others) if each.ending is None]

    def asked(self, request: str) -> None:
        """Say that a call is about to be made."""
        self._journal.keep(CallAsked(attempt=self._attempt, at=datetime.now(UTC), request=request))

    def made(self, request: str, call: str) -> None:
        """Say that it was made."""
        self._journal.keep(CallMade(attempt=self._attempt, at=datetime.now(UTC), request=request, call=call))

    def ended(self, call: str, how: CallEnding) -> None:
        """Say how it ended."""
        self._journal.keep(CallEnded(attempt=self._attempt, at=datetime.now(UTC), call=call, how=how))
