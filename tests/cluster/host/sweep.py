"""Taking the full cluster down, whatever state it is in: stopped in order, half started, or all killed."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.cluster.errors import PrerequisiteError, StopError
from tests.cluster.host import process
from tests.cluster.host import state as host_state
from tests.cluster.host.cgroups import kill_by_pid, remove_cgroups
from tests.cluster.host.machine import cgroup_hierarchies
from tests.cluster.host.network import remove_network
from tests.cluster.layout import ClusterFolders

# Bridge, cgroups and address ranges are the machine's, so that only one state folder can use them at a time.
MACHINE_MARKER = Path("/run/claas-test-cluster")
STOP_GRACE_SECONDS = 5.0
SHIM = "containerd-shim-runc-v2"
# The kubelet first, so that it restarts nothing; containerd and etcd last, since the others use them.
STOP_ORDER = (
    "kubelet",
    "kube-proxy",
    "kube-scheduler",
    "kube-controller-manager",
    "kube-apiserver",
    "containerd",
    "etcd",
)


def claim_machine(folders: ClusterFolders) -> None:
    """Say that this state folder's cluster is the machine's one. Raises `PrerequisiteError` when the cluster
    of another (another `CLAAS_CACHE`) runs."""
    if MACHINE_MARKER.exists():
        other = ClusterFolders(Path(MACHINE_MARKER.read_text().strip()))
        running = any(process.is_alive(each) for each in process.recorded(other.records))
        if other.root != folders.root and running:
            raise PrerequisiteError(
                f"the cluster of {other.root} runs on this machine: take it down first, with "
                f"CLAAS_CACHE={other.root.parent}"
            )
    MACHINE_MARKER.write_text(f"{folders.root}\n")


def sweep(folders: ClusterFolders, *, purge: bool = False) -> None:
    """Remove everything of the cluster from the machine but its images (with `purge`, those as well).

    Raises `StopError` when a process or a mount can't be removed (nothing is deleted from disk then), and
    `PrerequisiteError` when the machine is another cluster's.
    """
    claim_machine(folders)
    _stop_processes(folders)
    remove_cgroups(cgroup_hierarchies())
    kill_by_pid(_shims(folders))
    remove_network()
    _unmount_below(folders.root)
    for path in folders.root.glob("*") if folders.root.exists() else ():
        if path in (folders.host_state, folders.logs) or path.name.startswith("."):
            continue
        if path == folders.content and not purge:
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    host_state.restore(folders.host_state)
    MACHINE_MARKER.unlink(missing_ok=True)
    if purge:
        shutil.rmtree(folders.logs, ignore_errors=True)


def _stop_processes(folders: ClusterFolders) -> None:
    found = {each.name: each for each in process.recorded(folders.records)}
    for name in (*STOP_ORDER, *sorted(found.keys() - set(STOP_ORDER))):
        if name in found:
            process.stop(found[name], grace_seconds=STOP_GRACE_SECONDS, record_folder=folders.records)


def _shims(folders: ClusterFolders) -> Iterator[int]:
    """Shims that were started by this cluster's containerd: they name its socket."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if Path(arguments[0]).name == SHIM and str(folders.containerd_socket) in arguments:
            yield int(entry.name)


def mounts_below(mountinfo: str, root: Path) -> list[str]:
    """Mount points at or below a folder in the text of /proc/self/mountinfo, the latest first."""
    points = [line.split(" ")[4].encode().decode("unicode_escape") for line in mountinfo.splitlines()]
    return [point for point in reversed(points) if Path(point).is_relative_to(root)]


def _unmount_below(root: Path) -> None:
    root = root.resolve()
    for point in mounts_below(Path("/proc/self/mountinfo").read_text(), root):
        # Lazily: whoever could use it was killed, but the kernel may not have let go of it yet.
        subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)
    if left := mounts_below(Path("/proc/self/mountinfo").read_text(), root):
        raise StopError(f"still mounted: {', '.join(left)}; unmount them and try again")


def leftovers(folders: ClusterFolders) -> list[str]:
    """What of the cluster is still on the machine after a `down`, in words; empty when nothing is."""
    found = [
        f"process {each.pid} ({each.name})" for each in process.recorded(folders.records) if process.is_alive(each)
    ]
    found += [f"shim {pid}" for pid in _shims(folders)]
    found += [
        f"mount {each}" for each in mounts_below(Path("/proc/self/mountinfo").read_text(), folders.root.resolve())
    ]
    return found
