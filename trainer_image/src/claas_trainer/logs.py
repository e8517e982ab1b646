"""Structured one-line logs of phases and numbers. Never log the text of a sample."""

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
    """Frames of an exception's traceback, innermost last: `file:line function`, without values and source lines."""
    frames = traceback.extract_tb(trace)
    return " < ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-12:])


def log_exception(event: str, error: BaseException) -> None:
    """Log type and place of an unexpected exception and of its causes. Messages are omitted, because they may quote
    values.
    """
    seen: BaseException | None = error
    for depth in range(5):
        if seen is None:
            return
        log(event, depth=depth, type=type(seen).__name__, frames=frames_of(seen.__traceback__))
        seen = seen.__cause__ or seen.__context__
