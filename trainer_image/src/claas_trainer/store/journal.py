"""The run journal of a job: a file in `<root>/journal/`, with a line for each thing that its attempts have done.

Only the versions decide what a job has published. The journal tells the next attempt, and the recovery, what was done
already. A line is appended and synced when the thing is done; a line truncated by a crash is ignored. A line that
can't be written does not stop the step. No line holds a sample's text.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from claas_trainer.logs import log
from claas_trainer.store.content import fsync_folder
from claas_trainer.store.errors import errno_name

JOURNAL_FOLDER = "journal"
KEPT_JOURNALS = 64
"""Number of journals kept of jobs that published nothing: the last ones written."""
_READ_BYTES = 64 * 1024
"""Bytes read from a file's end; enough for hundreds of attempts."""
_FOLDER_MODE = 0o2775
_FILE_MODE = 0o664


class _Entry(BaseModel):
    """A line. A newer trainer may add fields and kinds; older ones ignore unknown ones."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    attempt: int
    at: datetime


class AttemptBegun(_Entry):
    """The attempt is about to prepare its engine for this step."""

    kind: Literal["begun"] = "begun"
    engine: str
    parent: int
    version: int
    """The number that it will publish under."""


class StepTaken(_Entry):
    """The step was taken, and serving goes on; nothing is published yet."""

    kind: Literal["step-taken"] = "step-taken"


class VersionPublished(_Entry):
    """The version is published. `attempt` is the attempt that reports it."""

    kind: Literal["published"] = "published"
    version: int


class RemoteCall(StrEnum):
    """What is asked of an engine's service, where it costs or changes something."""

    RUN = "run"
    """Begin a training run."""
    STEP = "step"
    """Forward, backward and the optimiser's step."""
    SAVE = "save"
    """Keep the weights: a checkpoint of the training state and one for sampling."""
    SAVE_FOR_SAMPLING = "save-for-sampling"
    """Make the second of the two from the first, which an earlier attempt has left alone."""


class RemoteAsked(_Entry):
    """The service is about to be asked for something. Without its `RemoteDone` nobody knows whether it did it."""

    kind: Literal["remote-asked"] = "remote-asked"
    call: RemoteCall
    start: str
    """Digest of what the step starts from and learns. What was asked for another start is of no use for this one."""
    session: str
    """The session of the client that asks."""
    run: str | None = None
    """The training run; None where it is begun."""
    sequence: int | None = None
    """Number of the call's first request within the run."""
    request: str | None = None
    """Digest of what is asked, where the same must be asked again."""
    name: str | None = None
    """Name of the checkpoints, chosen beforehand."""
    metrics: dict[str, float] = {}
    """Metrics of the step, before it is saved."""


class RemoteDone(_Entry):
    """The service has done it."""

    kind: Literal["remote-done"] = "remote-done"
    call: RemoteCall
    start: str
    session: str
    run: str
    state_path: str | None = None
    """Checkpoint of weights and optimiser state, where they are saved."""
    sampler_path: str | None = None
    """Checkpoint for sampling, where the weights are saved."""


class RunLost(_Entry):
    """The service has this training run no more, or it must not be used."""

    kind: Literal["run-lost"] = "run-lost"
    run: str


class CallAsked(_Entry):
    """A function of an engine's service is about to be called for a whole step. Without its `CallMade` nobody knows
    whether it was."""

    kind: Literal["call-asked"] = "call-asked"
    request: str
    """Digest of all that decides the step's result."""


class CallMade(_Entry):
    """The service has taken the call."""

    kind: Literal["call-made"] = "call-made"
    request: str
    call: str
    """The service's name of the call, by which any process can ask for its answer."""


class CallEnding(StrEnum):
    """How a call ended."""

    ANSWERED = "answered"
    """With a version. The service tells the answer again to whoever asks."""
    FAILED = "failed"
    """Without one."""
    LOST = "lost"
    """The service knows nothing of it any more."""
    CANCELLED = "cancelled"
    """It took too long, or nobody wants its answer any more."""


class CallEnded(_Entry):
    """A call is over."""

    kind: Literal["call-ended"] = "call-ended"
    call: str
    how: CallEnding


Entry = Annotated[
    AttemptBegun
    | StepTaken
    | VersionPublished
    | RemoteAsked
    | RemoteDone
    | RunLost
    | CallAsked
    | CallMade
    | CallEnded,
    Field(discriminator="kind"),
]
_ENTRY: TypeAdapter[Entry] = TypeAdapter(Entry)


class RunJournal:
    """The journal of one job. Errors of the volume are never raised."""

    def __init__(self, root: Path, job_uid: str) -> None:
        """`root`: the adapter's folder."""
        self.root = root
        self.path = root / JOURNAL_FOLDER / _file_name(job_uid)

    def others(self) -> list[RunJournal]:
        """The journals of the adapter's other jobs; empty if the folder is unreadable."""
        # The name of a file is that of its job, or of what stands for it, which is a name like any other.
        return [RunJournal(self.root, path.stem) for path in _paths(self.path.parent) if path != self.path]

    def entries(self) -> tuple[Entry, ...]:
        """The entries, oldest first; empty if unreadable."""
        return _read(self.path)

    def keep(self, entry: Entry) -> None:
        """Append an entry, durable on return; a failure is logged."""
        # The first line break ends a line truncated by a crash.
        line = b"\n" + _ENTRY.dump_json(entry) + b"\n"
        try:
            new = not self.path.exists()
            if new:
                _make_folder(self.path.parent)
            _append(self.path, line)
            if new:
                fsync_folder(self.path.parent)
        except OSError as error:
            log("journal-not-kept", path=str(self.path), kind=entry.kind, why=errno_name(error))

    def prune_others(self) -> None:
        """Delete the journals of jobs that have published, and of others all but the last `KEPT_JOURNALS`. Called
        before a step, which the operator does not start before earlier jobs are accounted for.
        """
        folder = self.path.parent
        try:
            others = [(path.stat().st_mtime_ns, path) for path in folder.iterdir() if path != self.path]
            unpublished = 0
            for _, path in sorted(others, reverse=True):
                done = any(isinstance(entry, VersionPublished) for entry in _read(path))
                unpublished += not done
                if done or unpublished > KEPT_JOURNALS:
                    path.unlink()
        except FileNotFoundError:
            # There is no journal yet, or another process deleted one; the rest is deleted next time.
            return
        except OSError as error:
            log("journal-not-pruned", path=str(folder), why=errno_name(error))


def journals(root: Path) -> list[tuple[Entry, ...]]:
    """The entries of all jobs' journals below an adapter's folder; empty if unreadable."""
    return [_read(path) for path in _paths(root / JOURNAL_FOLDER)]


def story(entries: Sequence[Entry]) -> str:
    """Progress of the last attempt, for people; empty if no attempt started."""
    begun = next((entry for entry in reversed(entries) if isinstance(entry, AttemptBegun)), None)
    if begun is None:
        return ""
    since = entries[list(entries).index(begun) :]
    when = f"attempt {begun.attempt} began at {begun.at:%Y-%m-%d %H:%M:%S} UTC from version {begun.parent}"
    if published := next((entry for entry in since if isinstance(entry, VersionPublished)), None):
        return f"{when} and published version {published.version}"
    if any(isinstance(entry, StepTaken) for entry in since):
        return f"{when}, took its step and published nothing"
    return f"{when} and did not finish its step"


def _file_name(job_uid: str) -> str:
    plain = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", job_uid)
    return f"{job_uid if plain else hashlib.sha256(job_uid.encode()).hexdigest()}.jsonl"


def _paths(folder: Path) -> list[Path]:
    try:
        return sorted(folder.glob("*.jsonl"))
    except OSError as error:
        log("journals-not-read", path=str(folder), why=errno_name(error))
        return []


def _read(path: Path) -> tuple[Entry, ...]:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _READ_BYTES))
            lines = file.read(_READ_BYTES).split(b"\n")
    except FileNotFoundError:
        return ()
    except OSError as error:
        log("journal-not-read", path=str(path), why=errno_name(error))
        return ()
    return tuple(entry for line in lines if (entry := _entry(line)) is not None)


def _entry(line: bytes) -> Entry | None:
    try:
        return _ENTRY.validate_json(line)
    except ValidationError:
        return None


def _make_folder(folder: Path) -> None:
    """Readable by servers and writable by trainers with other user ids."""
    if not folder.exists():
        folder.mkdir()
        folder.chmod(_FOLDER_MODE)
        fsync_folder(folder.parent)


def _append(path: Path, line: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, _FILE_MODE)
    try:
        left = memoryview(line)
        while left:
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
