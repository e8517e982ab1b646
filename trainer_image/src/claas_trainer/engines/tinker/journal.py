"""The run journal as this engine uses it: what this and earlier attempts have asked of the service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from claas_trainer.store.journal import Entry, RemoteAsked, RemoteCall, RemoteDone, RunJournal, RunLost


@dataclass(frozen=True)
class Checkpoints:
    """What a finished step has left at the service."""

    run: str
    """The run that took the step."""
    state_path: str
    """Weights and optimiser state: the next step starts from it."""
    sampler_path: str
    """Weights for sampling."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the step, as they were given to be saved."""


@dataclass(frozen=True)
class EarlierRun:
    """A run in which an earlier attempt has begun the step."""

    session: str
    run: str
    request: str | None
    """Digest of the step's requests."""
    saving: RemoteAsked | None = None
    """How it was asked to save, if the step was taken."""
    lost: bool = False
    """Whether the service has it no more."""


@dataclass(frozen=True)
class Left:
    """What earlier attempts have left, as far as the journal tells."""

    saved: Checkpoints | None
    """A finished step."""
    runs: tuple[EarlierRun, ...]
    """Runs in which it was begun, latest first."""


def left_by(entries: Sequence[Entry], start: str) -> Left:
    """What the attempts that began from `start`, a digest, have left."""
    runs: dict[str, EarlierRun] = {}
    saved: Checkpoints | None = None
    lost: set[str] = set()
    metrics: dict[str, Mapping[str, float]] = {}
    for entry in entries:
        match entry:
            case RunLost():
                lost.add(entry.run)
            case RemoteAsked(call=RemoteCall.STEP, run=str(run), start=of) if of == start:
                runs.pop(run, None)
                runs[run] = EarlierRun(entry.session, run, entry.request)
            case RemoteAsked(call=RemoteCall.SAVE, run=str(run), start=of) if of == start:
                request = runs[run].request if run in runs else None
                runs[run] = EarlierRun(entry.session, run, request, entry)
                metrics[run] = entry.metrics
            case RemoteDone(state_path=str(state), sampler_path=str(sampler), start=of) if of == start:
                saved = Checkpoints(entry.run, state, sampler, metrics.get(entry.run, {}))
    latest = tuple(
        EarlierRun(run.session, run.run, run.request, run.saving, run.run in lost) for run in reversed(runs.values())
    )
    return Left(saved, latest)


class RemoteJournal:
    """The journal of one attempt at a job."""

    def __init__(self, journal: RunJournal, attempt: int) -> None:
        self._journal = journal
        self._attempt = attempt

    def left(self, start: str) -> Left:
        """What earlier attempts have left that began from `start`."""
        return left_by(self._journal.entries(), start)

    def asked(
        self,
        call: RemoteCall,
        start: str,
        session: str,
        run: str | None = None,
        *,
        sequence: int | None = None,
        request: str | None = None,
        name: str | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Say that the service is about to be asked."""
        self._journal.keep(
            RemoteAsked(
                attempt=self._attempt,
                at=datetime.now(UTC),
                call=call,
                start=start,
                session=session,
                run=run,
                sequence=sequence,
                request=request,
                name=name,
                metrics=dict(metrics or {}),
            )
        )

    def done(self, call: RemoteCall, start: str, session: str, run: str, saved: Checkpoints | None = None) -> None:
        """Say that the service has done it."""
        self._journal.keep(
            RemoteDone(
                attempt=self._attempt,
                at=datetime.now(UTC),
                call=call,
                start=start,
                session=session,
                run=run,
                state_path=saved.state_path if saved else None,
                sampler_path=saved.sampler_path if saved else None,
            )
        )

    def lost(self, run: str) -> None:
        """Say that a run is not to be used again."""
        self._journal.keep(RunLost(attempt=self._attempt, at=datetime.now(UTC), run=run))
