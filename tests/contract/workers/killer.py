"""Kills a worker at a call that it makes of a peer."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

C = TypeVar("C")


@dataclass
class Killer(Generic[C]):
    """To be called by the peer at each call; kills once."""

    counts: Callable[[C], bool]
    """Whether a call is one of the worker's that are counted."""
    at: int
    """Which of these."""
    pid: int = 0
    """The worker's, known once it has begun: then `ready` is set."""
    ready: threading.Event = field(default_factory=threading.Event)
    seen: int = 0
    killed: bool = False

    def __call__(self, call: C) -> None:
        if not self.counts(call) or self.killed:
            return
        self.seen += 1
        if self.seen == self.at:
            self.killed = True
            self.ready.wait(10)
            os.kill(self.pid, signal.SIGKILL)
