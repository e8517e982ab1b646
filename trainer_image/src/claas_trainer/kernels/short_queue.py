"""Keeps a GPU's queue short, so that the GPU idles soon after the thread that fills the queue pauses."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch

_PARTS = 2
"""Parts that may be queued. With fewer the GPU would wait for the host; with more it would not idle during a short
pause."""


class ShortQueue:
    """Called before each part of the work: waits until all but the last few parts are done, then calls `rest`."""

    def __init__(self, device: torch.device, rest: Callable[[], None]) -> None:
        self._device = device
        self._rest = rest
        self._begun: deque[torch.cuda.Event] = deque()

    def __call__(self) -> None:
        # A blocking wait: a spinning thread would take a CPU core from serving.
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        self._begun.append(event)
        if len(self._begun) > _PARTS:
            self._begun.popleft().synchronize()
        self._rest()
