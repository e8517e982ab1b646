"""How long a step rests between its parts, so that serving beside it keeps its share: arithmetic, no clock."""

from __future__ import annotations

from dataclasses import dataclass

LONGEST_REST_SECONDS = 1.0
"""Of one rest: what was measured may be wrong by now, and is measured again after it."""

TELLING_SECONDS = 0.5
"""A shorter stretch says nothing: counters move by whole batches of tokens."""


@dataclass(frozen=True)
class Served:
    """What servers did in a stretch of time: its seconds, and the tokens that they generated in it."""

    seconds: float
    tokens: int

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


def slowdown_percent(before: Served | None, during: Served) -> float | None:
    """How much of its tokens a second serving lost, at least 0; None where nothing was served before, or too little
    time has passed."""
    if before is None or before.rate <= 0 or during.seconds < TELLING_SECONDS:
        return None
    return max(0.0, 100.0 * (1.0 - during.rate / before.rate))


def rest_seconds(before: Served | None, during: Served, most_slowdown_percent: float) -> float:
    """How long to rest now, for serving to have kept its share since the step began when the rest is over.

    `during` has the step's work and its earlier rests. While the step rests, serving is taken to be as fast as
    before. 0 where nothing can be told, or nothing was served before: there is nothing to slow down.
    """
    slowdown = slowdown_percent(before, during)
    if before is None or slowdown is None or slowdown <= most_slowdown_percent:
        return 0.0
    share = 1.0 - most_slowdown_percent / 100.0
    # (tokens + rate * rest) / (seconds + rest) = share * rate
    missing = share * before.rate * during.seconds - during.tokens
    return min(LONGEST_REST_SECONDS, missing / (before.rate * (1.0 - share)))
