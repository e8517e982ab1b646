"""Doing work again in smaller pieces when memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from claas_trainer.sdpo.settings import Schedule

T = TypeVar("T")


def until_it_fits(
    work: Callable[[Schedule], T], schedule: Schedule, before_again: Callable[[], object] | None = None
) -> tuple[T, Schedule]:
    """The result of the work, and the schedule with which it fitted into memory: the given one, or smaller halves.

    `before_again` undoes what the failed work had added. Raises torch.OutOfMemoryError: not even the smallest piece
    fits.
    """
    while True:
        try:
            return work(schedule), schedule
        except torch.OutOfMemoryError:
            smaller = schedule.halved()
            if smaller is None:
                raise
        # Outside the except block, so that the traceback's frames no longer keep the allocated memory alive.
        schedule = smaller
        if before_again is not None:
            before_again()
        torch.cuda.empty_cache()
