"""How the service has answered lately.

While the SDK retries, its caller sees nothing. What the service says meanwhile tells a rate limit from an unpaid bill
when the deadline comes. It is read from httpx's log of requests, which is written whatever the transport.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import urlsplit

_HTTPX = logging.getLogger("httpx")
_REFUSALS = frozenset({401, 402, 403, 429})
"""Failures besides those of the server. A 404 answers some questions, a 408 says that a result is not there yet."""
_LIVE_SECONDS = 45.0
"""A failure without another answer for so long has become its caller's: the SDK waits 30 s at most between tries."""


@dataclass(frozen=True)
class Failing:
    """A route that fails again and again."""

    status: int
    """Status of its latest answer."""
    since: float
    """When the failures began, in seconds of the clock."""
    latest: float
    """When it failed last."""


class AnswerWatch(logging.Filter):
    """Which routes of the service fail, and since when; thread-safe."""

    _silent: ClassVar[bool] = False
    """Whether nobody but us wants httpx's log of requests."""

    def __init__(self, base_url: str, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self.clock = clock
        self._server = urlsplit(base_url).netloc
        self._failing: dict[str, Failing] = {}
        self._lock = threading.Lock()

    def listen(self) -> None:
        """Begin to read httpx's log."""
        if not _HTTPX.isEnabledFor(logging.INFO):
            AnswerWatch._silent = True
            _HTTPX.setLevel(logging.INFO)
        _HTTPX.addFilter(self)

    def stop(self) -> None:
        """Read no more of it."""
        _HTTPX.removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Note an answer; its record is logged if it would have been without us."""
        arguments = record.args
        if record.levelno != logging.INFO or not isinstance(arguments, tuple) or len(arguments) < 4:
            return True
        url, status = urlsplit(str(arguments[1])), arguments[3]
        if isinstance(status, int) and url.netloc == self._server:
            self.note(url.path, status)
        return not AnswerWatch._silent

    def note(self, route: str, status: int) -> None:
        """An answer came."""
        with self._lock:
            before = self._failing.pop(route, None)
            if status in _REFUSALS or status >= 500:
                now = self.clock()
                goes_on = before is not None and now - before.latest < _LIVE_SECONDS
                self._failing[route] = Failing(status, before.since if before and goes_on else now, now)

    def failing(self) -> Failing | None:
        """The route whose failure is the latest, while it is tried again; None if there is none."""
        with self._lock:
            latest = next(reversed(self._failing.values()), None)
        return latest if latest and self.clock() - latest.latest < _LIVE_SECONDS else None
