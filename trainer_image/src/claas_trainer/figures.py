"""Rounds figures for a status: seconds to milliseconds, metrics to six significant digits."""

from __future__ import annotations

import time
from collections.abc import Mapping

_DIGITS = 6


def seconds_since(started: float) -> float:
    """Seconds since `started` (from `time.monotonic`), rounded to milliseconds."""
    return seconds(time.monotonic() - started)


def seconds(value: float) -> float:
    """Rounds seconds to milliseconds."""
    return round(value, 3)


def significant(metrics: Mapping[str, float]) -> dict[str, float]:
    """Rounds metrics to six significant digits; longer integers stay as they are."""
    return {
        name: value if value.is_integer() else float(f"{value:.{_DIGITS}g}")
        for name, value in ((name, float(value)) for name, value in metrics.items())
    }
