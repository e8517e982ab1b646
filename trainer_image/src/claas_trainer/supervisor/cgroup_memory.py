"""Counts how often the kernel killed a process of this container for lack of memory."""

from __future__ import annotations

from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
_COUNTERS = ("memory.events", "memory/memory.oom_control")
"""Files of cgroup v2 and v1; both have a line `oom_kill N`."""


def oom_kills(root: Path = CGROUPS) -> int:
    """The count so far; 0 if the container can't see it."""
    for counter in _COUNTERS:
        try:
            lines = (root / counter).read_text(encoding="ascii").splitlines()
            counts = dict(line.split(" ", 1) for line in lines)
            return int(counts["oom_kill"])
        except (OSError, ValueError, KeyError):
            continue
    return 0
