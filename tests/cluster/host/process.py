"""Processes that outlive the command that started them, and are stopped by their recorded identity.

A process id alone may have been given to another process since. Its start time, field 22 of
/proc/<pid>/stat, does not change and tells the two apart.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.cluster.errors import CommandError, StartError, StopError

POLL_SECONDS = 0.05
LOG_TAIL_LINES = 15


@dataclass(frozen=True)
class ProcessIdentity:
    """One process, told apart from a later one that got the same id.

    `start_ticks` is the start time in clock ticks since boot, as the kernel reports it.
    """

    name: str
    pid: int
    start_ticks: int


@dataclass(frozen=True)
class ProcessStat:
    """What /proc/<pid>/stat says about a process that exists."""

    state: str
    parent_pid: int
    start_ticks: int


def parse_stat(text: str) -> ProcessStat:
    """Read a /proc/<pid>/stat line; the command name in it may hold spaces and parentheses."""
    fields = text[text.rindex(")") + 2 :].split()
    return ProcessStat(state=fields[0], parent_pid=int(fields[1]), start_ticks=int(fields[19]))


def read_stat(pid: int) -> ProcessStat | None:
    """The state of a process, or None when no such process exists."""
    try:
        return parse_stat(Path(f"/proc/{pid}/stat").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return None


def is_alive(process: ProcessIdentity) -> bool:
    """Whether this very process still runs. A zombie counts as gone."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)
    stat = read_stat(process.pid)
    return stat is not None and stat.start_ticks == process.start_ticks and stat.state not in ("Z", "X")


def start(
    name: str,
    command: Sequence[str | Path],
    *,
    log_path: Path,
    record_folder: Path,
    environment: Mapping[str, str] | None = None,
) -> ProcessIdentity:
    """Start a process in a session of its own, log to a file, and record its identity."""
    log_path.parent.mkdir(parents=True, exist_ok=True)
    record_folder.mkdir(parents=True, exist_ok=True)
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
    process.returncode = 0  # the record owns it from here: no warning when this object is collected
    stat = read_stat(process.pid)
    if stat is None:
        raise StartError(f"{name} ended at once; {tail(log_path)}")
    identity = ProcessIdentity(name, process.pid, stat.start_ticks)
    partial = record_folder / f".{name}.json"
    partial.write_text(json.dumps(asdict(identity)))
    partial.rename(record_folder / f"{name}.json")
    return identity


def recorded(record_folder: Path) -> list[ProcessIdentity]:
    """Every process recorded in a folder, running or not; a record cut short is left out."""
    processes = []
    for path in sorted(record_folder.glob("*.json")):
        with contextlib.suppress(json.JSONDecodeError, TypeError, FileNotFoundError):
            processes.append(ProcessIdentity(**json.loads(path.read_text())))
    return processes


def send_signal(process: ProcessIdentity, number: signal.Signals) -> None:
    """Signal exactly this process. The pidfd is opened before its identity is checked, so that the id
    can't pass to another process in between."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        if is_alive(process):
            signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return
    finally:
        os.close(descriptor)


def stop(process: ProcessIdentity, *, grace_seconds: float, record_folder: Path | None = None) -> None:
    """Ask a process to end, kill it after the grace, and forget its record once it is gone.

    Raises `StopError` when it survives SIGKILL for ten seconds.
    """
    send_signal(process, signal.SIGTERM)
    if not wait_until_gone(process, grace_seconds):
        send_signal(process, signal.SIGKILL)
        if not wait_until_gone(process, 10.0):
            raise StopError(f"{process.name} (process {process.pid}) is still there 10 s after SIGKILL")
    if record_folder is not None:
        (record_folder / f"{process.name}.json").unlink(missing_ok=True)


def wait_until_gone(process: ProcessIdentity, timeout_seconds: float) -> bool:
    """Wait for a process to end; True when it did."""
    deadline = time.monotonic() + timeout_seconds
    while is_alive(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def tail(log_path: Path) -> str:
    """The end of a log, for an error message."""
    if not log_path.exists():
        return f"no log at {log_path}"
    lines = log_path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    return f"end of {log_path}:\n" + "\n".join(lines)


def run(
    command: Sequence[str | Path],
    *,
    timeout_seconds: float = 60.0,
    check: bool = True,
    input_text: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run a command to its end and return its standard output.

    Raises `CommandError` with the command and the end of its error output when it fails (unless
    `check` is False) or takes too long.
    """
    arguments = [str(part) for part in command]
    try:
        result = subprocess.run(
            arguments,
            input=input_text,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
            env={**os.environ, **(environment or {})},
        )
    except subprocess.TimeoutExpired as error:
        raise CommandError(f"`{' '.join(arguments)}` did not end within {timeout_seconds:.0f} s") from error
    except FileNotFoundError as error:
        raise CommandError(f"{arguments[0]} is not installed or not on PATH") from error
    if check and result.returncode != 0:
        raise CommandError(
            f"`{' '.join(arguments)}` ended with code {result.returncode}: {result.stderr.strip()[-2000:]}"
        )
    return result.stdout
