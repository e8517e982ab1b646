"""Events from the worker to its supervisor: one JSON line per event, over a pipe.

The kernel keeps written lines when the worker is killed, so an announcement before a pause is never lost.
"""

from __future__ import annotations

import os
import threading
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from claas_contract.base import ContractModel
from claas_contract.result import PublishedVersion, TrainerResult
from claas_crds.v1alpha1.step import JobPhase


class PhaseReached(ContractModel):
    """The worker has reached this phase; `detail` is text such as `micro-batch 3 of 8`."""

    kind: Literal["phase"] = "phase"
    phase: JobPhase
    detail: str = ""


class PauseAnnounced(ContractModel):
    """The worker is about to pause this server. From now on the supervisor has to wake it if the worker does not."""

    kind: Literal["pause-announced"] = "pause-announced"
    pod: str
    url: str
    at: datetime


class PauseConfirmed(ContractModel):
    """The server has confirmed that it is paused."""

    kind: Literal["pause-confirmed"] = "pause-confirmed"
    url: str


class Awake(ContractModel):
    """The server has confirmed that it is awake again, or it has ended."""

    kind: Literal["awake"] = "awake"
    url: str


class SharingBegan(ContractModel):
    """The worker is about to use memory of this server. If the server ends, the worker must end."""

    kind: Literal["sharing-began"] = "sharing-began"
    pod: str
    url: str


class SharingEnded(ContractModel):
    """The worker no longer uses memory of this server."""

    kind: Literal["sharing-ended"] = "sharing-ended"
    url: str


class Published(ContractModel):
    """The version is published."""

    kind: Literal["published"] = "published"
    version: PublishedVersion


class Finished(ContractModel):
    """The attempt has ended; the last event."""

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
    """Parses one line. Raises ValueError if it is not an event."""
    return _EVENT.validate_json(line)


class Reporter:
    """Writes events to a pipe; thread-safe. A missing supervisor is not an error, because the worker is killed with
    it."""

    def __init__(self, file_descriptor: int) -> None:
        self._file_descriptor = file_descriptor
        self._lock = threading.Lock()

    def send(self, event: Event) -> None:
        """Write one event; returns when all of it is in the pipe."""
        left = memoryview(encode(event))
        with self._lock:
            while left:
                left = left[os.write(self._file_descriptor, left) :]

    def phase(self, phase: JobPhase, detail: str = "") -> None:
        """Report the phase of the attempt."""
        self.send(PhaseReached(phase=phase, detail=detail))
