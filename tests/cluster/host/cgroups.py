"""The cgroup that holds every pod, in each hierarchy: made for the kubelet, and emptied and removed after it."""

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.cluster.errors import StopError
from tests.cluster.host.machine import CgroupHierarchy
from tests.cluster.layout import CGROUP_NAME

EMPTY_TIMEOUT_SECONDS = 20.0
POLL_SECONDS = 0.05


def make_cgroups(hierarchies: Iterable[CgroupHierarchy]) -> None:
    """Make the pods' root cgroup everywhere, ready for children."""
    for hierarchy in hierarchies:
        folder = hierarchy.mount_point / CGROUP_NAME
        folder.mkdir(exist_ok=True)
        if "cpuset" in hierarchy.controllers and not hierarchy.is_v2:
            # A v1 cpuset starts with no CPU and no memory node, and admits no process then.
            for name in ("cpuset.cpus", "cpuset.mems"):
                (folder / name).write_text((hierarchy.mount_point / name).read_text())
        if hierarchy.is_v2 and hierarchy.controllers:
            enabled = " ".join(f"+{each}" for each in sorted(hierarchy.controllers))
            for parent in (hierarchy.mount_point, folder):
                (parent / "cgroup.subtree_control").write_text(enabled)


def _processes(root: Path) -> Iterator[int]:
    for path in root.rglob("cgroup.procs"):
        with contextlib.suppress(OSError):
            yield from (int(line) for line in path.read_text().split())


def kill_by_pid(pids: Iterable[int]) -> None:
    """SIGKILL processes that were just found, where they still exist."""
    for pid in set(pids) - {0}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def remove_cgroups(hierarchies: Iterable[CgroupHierarchy]) -> None:
    """Kill every process in the pods' cgroups and remove them.

    Membership is read anew before each round, so nobody outside is touched. Raises `StopError` when some
    process does not die.
    """
    roots = [each.mount_point / CGROUP_NAME for each in hierarchies]
    roots = [root for root in roots if root.is_dir()]
    deadline = time.monotonic() + EMPTY_TIMEOUT_SECONDS
    for root in roots:
        while pids := set(_processes(root)):
            if time.monotonic() > deadline:
                raise StopError(f"processes {sorted(pids)} in {root} do not end after SIGKILL")
            kill_by_pid(pids)
            time.sleep(POLL_SECONDS)
        folders = sorted((path for path in root.rglob("*") if path.is_dir()), key=lambda path: -len(path.parts))
        for folder in [*folders, root]:
            _remove(folder, deadline)


def _remove(folder: Path, deadline: float) -> None:
    """Remove one cgroup; the kernel may say busy for a moment after its last process ended."""
    while True:
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise StopError(f"cgroup {folder} can't be removed: {error}") from error
            time.sleep(POLL_SECONDS)
        else:
            return
