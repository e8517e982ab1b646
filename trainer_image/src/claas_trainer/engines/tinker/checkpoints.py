"""How long the service keeps the checkpoints of an adapter's versions, and of attempts that published nothing.

Head and parent are kept without limit. What is done is remembered in a file beside the versions, so that each
checkpoint is asked for once. A failure is only logged: the next step tries again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from claas_bounded.waits import Deadline
from claas_tinker_client.connection import TinkerConnection
from claas_tinker_client.errors import ServiceFault, TinkerServiceError
from claas_tinker_client.faults import Subject
from claas_tinker_client.version_file import TinkerVersion
from claas_trainer.errors import StoreError
from claas_trainer.logs import log
from claas_trainer.store.annotations import read_annotation, write_annotation
from claas_trainer.store.journal import RemoteDone, journals
from claas_trainer.store.versions import VersionStore

LIMITS_FILE = "tinker-checkpoints.json"
SHORTEST_SECONDS = 3600
"""The shortest time to live that the service takes."""
TIDY_SECONDS = 30.0


class CheckpointLimits(BaseModel):
    """Content of the file: the checkpoints that were given a time to live, in seconds."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    seconds: Mapping[str, int] = {}


def limits_to_set(
    kept: Collection[str], superseded: Iterable[str], abandoned: Iterable[str], done: Mapping[str, int], ttl: int
) -> dict[str, int | None]:
    """The time to live, in seconds, that each checkpoint is to get now; None takes one away, as of a version to which
    training has gone back. `kept`: of the head and its parent; `superseded`: of all other versions; `abandoned`: of
    attempts, whether they published or not; `done`: what was set before."""
    due: dict[str, int | None] = {path: None for path in kept if path in done}
    of_versions = {*kept, *superseded}
    due |= {path: ttl for path in sorted(of_versions - set(kept)) if path not in done}
    due |= {path: SHORTEST_SECONDS for path in sorted(set(abandoned) - of_versions) if path not in done}
    return due


async def tidy(connection: TinkerConnection, store: VersionStore, head: int, ttl: int) -> None:
    """Have the service forget, in time, what no step starts from. `head`: number of the version just published;
    `ttl`: time to live of superseded checkpoints, in seconds. Raises nothing; takes 30 s at most."""
    deadline = Deadline.after(TIDY_SECONDS)
    try:
        due, done = _due(store, head, ttl)
        for path, seconds in due.items():
            if not await _set(connection, path, seconds, deadline):
                break
            done.pop(path, None)
            if seconds is not None:
                done[path] = seconds
        if due:
            write_annotation(
                store.root, LIMITS_FILE, CheckpointLimits(seconds=done).model_dump_json(indent=1).encode()
            )
    except (StoreError, TinkerServiceError) as error:
        log("checkpoints-not-tidied", why=error.message)


def _due(store: VersionStore, head: int, ttl: int) -> tuple[dict[str, int | None], dict[str, int]]:
    parent = store.read(head).record.parent
    kept, superseded = set[str](), set[str]()
    for number in store.numbers():
        paths = _checkpoints(store.versions / str(number))
        if number in (head, parent):
            kept |= paths
        else:
            superseded |= paths
    abandoned = {
        path
        for entries in journals(store.root)
        for entry in entries
        if isinstance(entry, RemoteDone)
        for path in (entry.state_path, entry.sampler_path)
        if path is not None
    }
    done = _read(store.root)
    # Forget those of versions and journals that are no longer on the volume.
    known = kept | superseded | abandoned
    done = {path: seconds for path, seconds in done.items() if path in known}
    return limits_to_set(kept, superseded, abandoned, done, ttl), done


def _checkpoints(version: Path) -> set[str]:
    """None for a version of another engine, or one whose file is not readable."""
    try:
        made = TinkerVersion.read(version)
    except (OSError, ValidationError):
        return set()
    return {path for path in (made.state_path, made.sampler_path) if path is not None}


def _read(root: Path) -> dict[str, int]:
    data = read_annotation(root, LIMITS_FILE)
    try:
        return dict(CheckpointLimits.model_validate_json(data).seconds) if data is not None else {}
    except ValidationError:
        return {}


async def _set(connection: TinkerConnection, path: str, seconds: int | None, deadline: Deadline) -> bool:
    """Whether to go on with the next checkpoint. One that is gone counts as done."""
    try:
        rest = await connection.rest(deadline)
        await connection.call(
            f"to keep {path} for {seconds} s" if seconds else f"to keep {path} without limit",
            lambda: rest.set_checkpoint_ttl_from_tinker_path(path, seconds),
            deadline,
            Subject.CHECKPOINT,
        )
    except TinkerServiceError as error:
        log("checkpoint-not-tidied", checkpoint=path, why=error.message)
        return error.fault is ServiceFault.CHECKPOINT_EXPIRED
    return True
