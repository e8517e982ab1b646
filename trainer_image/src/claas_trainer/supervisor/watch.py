"""The supervisor's knowledge of its worker: a pure state, updated by the worker's events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from claas_contract.progress import Progress
from claas_contract.result import PublishedVersion, TrainerResult
from claas_crds.v1alpha1.step import JobPhase
from claas_trainer.messages.events import (
    Awake,
    Event,
    Finished,
    PauseAnnounced,
    PauseConfirmed,
    PhaseReached,
    Published,
    SharingBegan,
    SharingEnded,
)


@dataclass
class WorkerState:
    """Phase of the worker, and the servers that it may have paused. `clock` returns monotonic seconds."""

    clock: Callable[[], float]
    phase: JobPhase = JobPhase.PREPARING
    detail: str = "starting"
    announced: dict[str, PauseAnnounced] = field(default_factory=dict)
    """Servers that may be paused, by address."""
    confirmed: set[str] = field(default_factory=set)
    """Those of them that confirmed the pause."""
    paused_at: float | None = None
    """When the first of them was announced, in `clock` seconds."""
    shared: dict[str, str] = field(default_factory=dict)
    """Servers whose memory the worker uses: names of their pods, by address."""
    published: PublishedVersion | None = None
    result: TrainerResult | None = None

    def take(self, event: Event) -> None:
        """Update the state by one event."""
        match event:
            case PhaseReached():
                self.phase, self.detail = event.phase, event.detail
            case PauseAnnounced():
                if self.paused_at is None:
                    self.paused_at = self.clock()
                self.announced[event.url] = event
            case PauseConfirmed():
                self.confirmed.add(event.url)
            case Awake():
                self.announced.pop(event.url, None)
                self.confirmed.discard(event.url)
                if not self.announced:
                    self.paused_at = None
            case SharingBegan():
                self.shared[event.url] = event.pod
            case SharingEnded():
                self.shared.pop(event.url, None)
            case Published():
                self.published = event.version
            case Finished():
                self.result = event.result

    @property
    def paused_since(self) -> datetime | None:
        """When serving was paused; None while it is not."""
        return min((event.at for event in self.announced.values()), default=None)

    def progress(self) -> Progress:
        """The progress to serve."""
        return Progress(phase=self.phase, detail=self.detail, paused_since=self.paused_since)
