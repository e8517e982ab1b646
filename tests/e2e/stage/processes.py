"""Processes of a pod on this machine's node, found by the pod's cgroup, and signals to them by their ids."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from claas_kube.objects.pods import Pod


def of_pod(pod: Pod) -> list[int]:
    """The ids of a pod's own processes, the oldest first; the pause container is not one of them."""
    marker = f"pod{pod.metadata.uid}"
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if marker in (folder / "cgroup").read_text() and (folder / "comm").read_text().strip() != "pause":
                found.append(int(folder.name))
        except OSError:
            continue  # it ended meanwhile
    return sorted(found)


def send(pod: Pod, number: signal.Signals, *, oldest_only: bool = False, youngest_only: bool = False) -> None:
    """Send a signal to a pod's processes; raises LookupError when it has none."""
    processes = of_pod(pod)
    if not processes:
        raise LookupError(f"pod {pod.metadata.name} has no process")
    chosen = processes[:1] if oldest_only else processes[-1:] if youngest_only else processes
    for process in chosen:
        try:
            os.kill(process, number)
        except ProcessLookupError:
            continue  # it went with another


def kill(pod: Pod) -> None:
    """SIGKILL all processes of a pod."""
    send(pod, signal.SIGKILL)
