"""How often the kernel ended a process of this container because its memory ran out."""

from __future__ import annotations

from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
_COUNTERS = ("memory.events", "memory/memory.oom_control")
"""Of cgroup v2 and of v1; both have a line `oom_kill N`."""


def oom_kills(root: Path = CGROUPS) -> int:
    """The count so far; 0 where the container can't see it."""
    for counter in _COUNTERS:
        try:
            lines = (root / counter).read_text(encoding="ascii").splitlines()
            counts = dict(line.split(" ", 1) for line in lines)
            return int(counts["oom_kill"])
        except (OSError, ValueError, KeyError):
            continue
    return 0
