"""What checks of a hosted service have in common: findings, told line by line."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Findings:
    """What was found. `errors`: the exceptions that a part of a check may end by."""

    errors: tuple[type[Exception], ...]
    differences: int = 0
    failures: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def tell(self, subject: str, found: str, *, as_assumed: bool = True, assumed: str = "") -> None:
        """Print one finding; what differs is counted."""
        if as_assumed:
            print(f"  ok       {subject}: {found}", flush=True)
            return
        self.differences += 1
        print(f"  DIFFERS  {subject}: {found}; assumed: {assumed}", flush=True)

    def told(self, subject: str, found: str) -> None:
        """Print what nothing is assumed of."""
        print(f"  note     {subject}: {found}", flush=True)

    @contextmanager
    def part(self, subject: str) -> Iterator[None]:
        """A part of the check, whose failure does not end the others."""
        began = time.monotonic()
        try:
            yield
        except self.errors as error:
            self.failures += 1
            print(f"  FAILED   {subject}: {type(error).__name__}: {str(error)[:300]}", flush=True)
        self.seconds[subject] = time.monotonic() - began

    def conclude(self) -> int:
        """Print what came of it all, and return the exit code: 0 as assumed, 1 something differs, 2 a part could not
        be checked."""
        print("  seconds: " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.seconds.items()))
        if self.failures:
            print(f"{self.failures} parts could not be checked, {self.differences} differences")
            return 2
        print(f"{self.differences} differences" if self.differences else "all as the engine assumes")
        return 1 if self.differences else 0
