"""What the worker tells its supervisor: one JSON line an event, over a pipe.

The kernel keeps what was written when the worker is killed, so an announcement made before a pause is never lost.
"""

from __future__ import annotations

import os
import threading
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from claas_contract.base import ContractModel
from claas_contract.result import PublishedVersion, TrainerResult
from claas_crds.v1alpha1.distill_job import JobPhase


class PhaseReached(ContractModel):
    """The worker is in this phase; `detail` is such as `micro-batch 3 of 8`."""

    kind: Literal["phase"] = "phase"
    phase: JobPhase
    detail: str = ""


class PauseAnnounced(ContractModel):
    """The worker is about to pause this server: from now on it must be woken if the worker does not do it."""

    kind: Literal["pause-announced"] = "pause-announced"
    pod: str
    url: str
    at: datetime


class PauseConfirmed(ContractModel):
    """The server said that it is paused."""

    kind: Literal["pause-confirmed"] = "pause-confirmed"
    url: str


class Awake(ContractModel):
    """The server said that it is awake again, or it has ended."""

    kind: Literal["awake"] = "awake"
    url: str


class SharingBegan(ContractModel):
    """The worker is about to compute with memory of this server: if that goes, so must the worker."""

    kind: Literal["sharing-began"] = "sharing-began"
    pod: str
    url: str


class SharingEnded(ContractModel):
    """The worker computes with no memory of this server any more."""

    kind: Literal["sharing-ended"] = "sharing-ended"
    url: str


class Published(ContractModel):
    """The version is on the volume, whole."""

    kind: Literal["published"] = "published"
    version: PublishedVersion


class Finished(ContractModel):
    """The attempt ended; nothing follows."""

    kind: Literal["finished"] = "finished"
    result: TrainerResult


Event = Annotated[
    PhaseReached | PauseAnnounced | PauseConfirmed | Awake | SharingBegan | SharingEnded | Published | Finished,
    Field(discriminator="kind"),
]
_EVENT: TypeAdapter[Event] = TypeAdapter(Event)


def encode(event: Event) -> bytes:
    """One line."""
    return event.model_dump_json(exclude_none=True).encode() + b"\n"


def decode(line: bytes) -> Event:
    """The event of one line. Raises ValueError for anything else."""
    return _EVENT.validate_json(line)


class Reporter:
    """Writes events to a pipe; safe from several threads. A supervisor that is gone is not an error here:
    the worker is killed with it."""

    def __init__(self, file_descriptor: int) -> None:
        self._file_descriptor = file_descriptor
        self._lock = threading.Lock()

    def send(self, event: Event) -> None:
        """Write one event; returns when the pipe has taken all of it."""
        left = memoryview(encode(event))
        with self._lock:
            while left:
                left = left[os.write(self._file_descriptor, left) :]

    def phase(self, phase: JobPhase, detail: str = "") -> None:
        """Say where the attempt is."""
        self.send(PhaseReached(phase=phase, detail=detail))
