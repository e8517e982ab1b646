"""What processes take of memory and of the processors, by /proc."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.host import process
from tests.cluster.light import LightCluster

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    """Of one process, since it began."""

    cpu_seconds: float
    resident_mb: float
    """Now, in 10^6 bytes."""
    peak_mb: float

    @classmethod
    def of(cls, pid: int) -> Usage:
        """A process that lives."""
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        sizes = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
        resident, peak = (int(sizes[name][0]) * 1024 / 1e6 for name in ("VmRSS", "VmHWM"))
        return cls((int(fields[11]) + int(fields[12])) / _TICKS, resident, peak)


def processor_seconds(cluster: LightCluster, operator_pid: int) -> dict[str, float]:
    """What each side has taken of the processors: the operator, this process with all that it plays, the servers, and
    whatever else runs on the machine."""
    servers = {each.name: each.pid for each in process.recorded(cluster.root / "pids")}
    sides = {"operator": operator_pid, "players": os.getpid(), **servers}
    taken = {name: Usage.of(pid).cpu_seconds for name, pid in sides.items()}
    return {**taken, "others": _busy_seconds() - sum(taken.values())}


def _busy_seconds() -> float:
    """What all processors of the machine have worked since it started."""
    user, nice, system, _, _, irq, soft_irq, *_ = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    return sum(int(each) for each in (user, nice, system, irq, soft_irq)) / _TICKS


def taken_since(before: dict[str, float], now: dict[str, float]) -> dict[str, float]:
    """What each side took in between."""
    return {name: round(now[name] - before[name], 2) for name in now}
