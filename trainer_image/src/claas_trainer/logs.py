"""One-line structured logs of phases and numbers. Texts of samples must never come here."""

from __future__ import annotations

import json
import sys
import traceback
from datetime import UTC, datetime
from types import TracebackType

Field = str | int | float | bool | None


def log(event: str, **fields: Field) -> None:
    """Write one JSON line to stdout."""
    line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event} | fields
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def frames_of(trace: TracebackType | None) -> str:
    """Where an exception came from, innermost last: `file:line function`; no values, no source lines."""
    frames = traceback.extract_tb(trace)
    return " < ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-12:])


def log_exception(event: str, error: BaseException) -> None:
    """Log an unexpected exception by type and place: its message may quote a value, so it is left out.

    The exceptions that it came from are named the same way.
    """
    seen: BaseException | None = error
    for depth in range(5):
        if seen is None:
            return
        log(event, depth=depth, type=type(seen).__name__, frames=frames_of(seen.__traceback__))
        seen = seen.__cause__ or seen.__context__
