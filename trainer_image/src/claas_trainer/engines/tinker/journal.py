"""The run journal as this engine uses it: what this and earlier attempts have asked of the service."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from claas_trainer.store.journal import Entry, RemoteAsked, RemoteCall, RemoteDone, RunJournal, RunLost


class RemoteJournal:
    """The journal of one attempt at a job."""

    def __init__(self, journal: RunJournal, attempt: int) -> None:
        self._journal = journal
        self._attempt = attempt

    def entries(self) -> tuple[Entry, ...]:
        """All entries of the job, oldest first."""
        return self._journal.entries()

    def asked(
        self,
        call: RemoteCall,
        session: str,
        run: str | None = None,
        *,
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
                session=session,
                run=run,
                request=request,
                name=name,
                metrics=dict(metrics or {}),
            )
        )

    def done(
        self,
        call: RemoteCall,
        session: str,
        run: str,
        *,
        state_path: str | None = None,
        sampler_path: str | None = None,
    ) -> None:
        """Say that the service has done it."""
        self._journal.keep(
            RemoteDone(
                attempt=self._attempt,
                at=datetime.now(UTC),
                call=call,
                session=session,
                run=run,
                state_path=state_path,
                sampler_path=sampler_path,
            )
        )

    def lost(self, run: str) -> None:
        """Say that a run is not to be used again."""
        self._journal.keep(RunLost(attempt=self._attempt, at=datetime.now(UTC), run=run))
