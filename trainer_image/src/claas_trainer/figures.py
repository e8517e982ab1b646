"""Figures as people read them in a status: seconds to the millisecond, metrics to six significant digits."""

from __future__ import annotations

import time
from collections.abc import Mapping

_DIGITS = 6


def seconds_since(started: float) -> float:
    """Seconds since `started`, a reading of `time.monotonic`, to the millisecond."""
    return seconds(time.monotonic() - started)


def seconds(value: float) -> float:
    """Seconds to the millisecond."""
    return round(value, 3)


def significant(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics to six significant digits; whole numbers of more digits stay whole."""
    return {
        name: value if value.is_integer() else float(f"{value:.{_DIGITS}g}")
        for name, value in ((name, float(value)) for name, value in metrics.items())
    }
