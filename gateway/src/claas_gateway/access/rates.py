"""How many requests each API key may make: a token bucket for each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

_MOST_BUCKETS = 10_000
"""Buckets kept; when there are more, those that are full again are dropped, which changes nothing."""

_ROUNDING = 1e-6
"""Tokens: what sums of times lose. A key that waited as it was told has its token."""


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class Rates:
    """Counts requests by key; `per_minute` 0 allows any number. A key that was quiet may make a minute's requests at
    once. Each replica of the gateway counts for itself."""

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._buckets: dict[bytes, _Bucket] = {}

    def take(self, key: bytes) -> int:
        """Count a request; 0 if it may be made, else the whole seconds until one may."""
        if self._per_minute == 0:
            return 0
        now, per_second = self._clock(), self._per_minute / 60
        bucket = self._buckets.get(key)
        if bucket is None:
            self._drop_full_ones(now, per_second)
            bucket = self._buckets[key] = _Bucket(float(self._per_minute), now)
        bucket.tokens = min(float(self._per_minute), bucket.tokens + max(0.0, now - bucket.at) * per_second)
        bucket.at = now
        if bucket.tokens >= 1.0 - _ROUNDING:
            bucket.tokens = max(0.0, bucket.tokens - 1.0)
            return 0
        return max(1, math.ceil((1.0 - bucket.tokens) / per_second))

    def _drop_full_ones(self, now: float, per_second: float) -> None:
        if len(self._buckets) < _MOST_BUCKETS:
            return
        for key, bucket in list(self._buckets.items()):
            if bucket.tokens + (now - bucket.at) * per_second >= self._per_minute:
                del self._buckets[key]
