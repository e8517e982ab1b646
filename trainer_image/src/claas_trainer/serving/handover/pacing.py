"""Pacing: how long a step waits between its parts so that serving keeps its share of the device. Arithmetic only, no
clock."""

from __future__ import annotations

from dataclasses import dataclass

LONGEST_REST_SECONDS = 1.0
"""Limit of one wait; the rates are measured again after it, because they may have changed."""

TELLING_SECONDS = 0.5
"""Shorter stretches are not evaluated, because counters advance by whole batches of tokens."""


@dataclass(frozen=True)
class Served:
    """Work of the servers in a stretch of time: its length in seconds, and the tokens generated."""

    seconds: float
    tokens: int

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


def slowdown_percent(before: Served | None, during: Served) -> float | None:
    """Loss of serving's tokens per second, in percent, at least 0; None if nothing was served before or the stretch
    is too short."""
    if before is None or before.rate <= 0 or during.seconds < TELLING_SECONDS:
        return None
    return max(0.0, 100.0 * (1.0 - during.rate / before.rate))


def rest_seconds(before: Served | None, during: Served, most_slowdown_percent: float) -> float:
    """Seconds to wait now, so that afterwards serving has had its share since the step began.

    `during` covers the step's work and its earlier waits. During the wait, serving is assumed to be as fast as before
    the step. 0 if a rate is unknown or nothing was served before.
    """
    slowdown = slowdown_percent(before, during)
    if before is None or slowdown is None or slowdown <= most_slowdown_percent:
        return 0.0
    share = 1.0 - most_slowdown_percent / 100.0
    # (tokens + rate * rest) / (seconds + rest) = share * rate
    missing = share * before.rate * during.seconds - during.tokens
    return min(LONGEST_REST_SECONDS, missing / (before.rate * (1.0 - share)))
