"""Times and numbers as the pages print them."""

from __future__ import annotations

import math
from datetime import UTC, datetime

NOTHING = "–"
"""Stands for a value that is not there."""
_MINUTE = 60
_HOUR = 3_600
_DAY = 86_400


def utc(at: datetime) -> str:
    """A time such as `2026-11-27 07:12:10`, in UTC."""
    return _in_utc(at).strftime("%Y-%m-%d %H:%M:%S")


def machine_time(at: datetime) -> str:
    """A time for the attribute `datetime`, which the browser reads."""
    return _in_utc(at).strftime("%Y-%m-%dT%H:%M:%SZ")


def ago(at: datetime, now: datetime) -> str:
    """How long ago that was: `3 min ago`. The page's script says it in the same words."""
    passed = int((now - _in_utc(at)).total_seconds())
    if passed < 0:
        return "just now"
    if passed < _MINUTE:
        return f"{passed} s ago"
    if passed < _HOUR:
        return f"{passed // _MINUTE} min ago"
    if passed < 2 * _DAY:
        return f"{passed // _HOUR} h ago"
    return f"{passed // _DAY} days ago"


def number(value: float | None) -> str:
    """A measurement with four digits."""
    if value is None or not math.isfinite(value):
        return NOTHING if value is None else "not finite"
    if value == int(value) and abs(value) < 1e7:
        return f"{int(value)}"
    return f"{value:.4g}"


def seconds(value: float | None) -> str:
    """A duration: `0.25 s`, `12.3 s`, `2 min 5 s`."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value < 1:
        return f"{value:.2g} s"
    if value < _MINUTE:
        return f"{value:.3g} s"
    whole = round(value)
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"


def shortened(text: str, length: int) -> str:
    """The text on one line, no longer than that."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1].rstrip()}…"


def _in_utc(at: datetime) -> datetime:
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
