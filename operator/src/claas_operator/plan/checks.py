"""Runs checks in order; each has an answer or leaves the decision to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

Subject = TypeVar("Subject")
Answer = TypeVar("Answer")


def first_answer(checks: Iterable[Callable[[Subject], Answer | None]], subject: Subject) -> Answer | None:
    """The answer of the first check that has one; None: no check has."""
    return next((answer for check in checks if (answer := check(subject)) is not None), None)
