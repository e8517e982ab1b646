"""The full cluster: up, down, status. Or the user's own, when `CLUSTER=current` says so."""

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.errors import CommandError, PrerequisiteError, StartError
from tests.cluster.host import machine as host
from tests.cluster.host import process
from tests.cluster.host import state as host_state
from tests.cluster.host.cgroups import make_cgroups
from tests.cluster.host.network import make_bridge, render_cni
from tests.cluster.host.sweep import claim_machine, sweep
from tests.cluster.host.volumes import storage_class
from tests.cluster.kubeconfig import render_kubeconfig, write_private
from tests.cluster.kubectl import Kubectl, kubectl_for
from tests.cluster.layout import (
    NODE_NAME,
    ClusterFolders,
    choose_endpoints,
    choose_local_ports,
    full_cluster_folders,
)
from tests.cluster.services import binaries
from tests.cluster.services.binaries import Binary
from tests.cluster.services.control_plane import Credentials, Endpoints, make_credentials, start_control_plane
from tests.cluster.services.node import start_node
from tests.cluster.services.runtime import start_containerd

READY_TIMEOUT_SECONDS = 120.0
POLL_SECONDS = 0.2
NODE_BINARIES = tuple(each for each in Binary if each not in (Binary.HELM, Binary.KUBECTL, Binary.PROMTOOL))
PROCESS_NAMES = frozenset({each.value for each in NODE_BINARIES if each is not Binary.PAUSE} | {"containerd"})
Report = Callable[[str], None]


def silent(_: str) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Cluster:
    """A cluster that runs. `is_own` is False for a cluster of the user's, which is never changed or stopped."""

    kubeconfig: Path
    is_own: bool

    def kubectl(self) -> Kubectl:
        """kubectl for this cluster."""
        return kubectl_for(self.kubeconfig)


@dataclass(frozen=True)
class Status:
    """Which processes run, and whether the node is ready for pods."""

    running: frozenset[str]
    node_ready: bool

    @property
    def is_up(self) -> bool:
        return self.node_ready and self.running >= PROCESS_NAMES


def uses_current_context() -> bool:
    """Whether `CLUSTER=current` asks for the cluster of the current kube-context."""
    choice = os.environ.get("CLUSTER", "")
    if choice not in ("", "current"):
        raise PrerequisiteError(f"CLUSTER={choice} means nothing: leave it unset, or set CLUSTER=current")
    return choice == "current"


@contextlib.contextmanager
def exclusive(folders: ClusterFolders) -> Iterator[None]:
    """Keep a second `up`, `down` or image load of this cluster waiting."""
    folders.root.mkdir(parents=True, exist_ok=True)
    with (folders.root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def check_current_context() -> Cluster:
    """The cluster of the current kube-context, if it answers. Raises `PrerequisiteError`."""
    first = os.environ.get("KUBECONFIG", "").split(":")[0]
    kubeconfig = Path(first) if first else Path.home() / ".kube" / "config"
    if not kubeconfig.exists():
        raise PrerequisiteError(f"CLUSTER=current, but there is no kubeconfig at {kubeconfig}: set KUBECONFIG")
    try:
        kubectl_for(kubeconfig)("get", "--raw", "/readyz", timeout_seconds=20)
    except CommandError as error:
        raise PrerequisiteError(f"CLUSTER=current, but its API server does not answer: {error}") from error
    return Cluster(kubeconfig, is_own=False)


def status() -> Status:
    """What runs of the full cluster."""
    folders = full_cluster_folders()
    running = frozenset(each.name for each in process.recorded(folders.records) if process.is_alive(each))
    ready = running >= PROCESS_NAMES and folders.kubeconfig.exists() and _node_is_ready(folders.kubeconfig)
    return Status(running, ready)


def _node_is_ready(kubeconfig: Path) -> bool:
    path = '{.status.conditions[?(@.type=="Ready")].status}'
    try:
        answer = kubectl_for(kubeconfig)("get", "node", NODE_NAME, "-o", f"jsonpath={path}", timeout_seconds=10)
    except CommandError:
        return False
    return answer == "True"


def up(report: Report = silent) -> Cluster:
    """Bring the cluster up, unless it is; whatever a killed predecessor left is removed first.

    Raises a `ClusterError` that names what is missing or failed, and leaves nothing behind then.
    """
    if uses_current_context():
        return check_current_context()
    folders = full_cluster_folders()
    host.require_root()
    cluster = Cluster(folders.kubeconfig, is_own=True)
    if status().is_up:
        return cluster
    with exclusive(folders):
        if status().is_up:  # another `up` held the lock
            return cluster
        with ThreadPoolExecutor(1) as pool:
            building = pool.submit(binaries.ensure, NODE_BINARIES)
            host.ensure_tools(host.CLUSTER_TOOLS)
            host.require_overlay()
            hierarchies = host.cgroup_hierarchies()
            sweep(folders)
            host.require_free_ranges()
            programs = building.result()
        report("prerequisites and binaries are there")
        try:
            claim_machine(folders)
            host_state.remember(folders.host_state)
            make_bridge()
            host.require_free_ports()
            make_cgroups(hierarchies)
            _start(folders, programs, report)
        except BaseException:
            sweep(folders)
            raise
        return cluster


def _start(folders: ClusterFolders, programs: dict[Binary, Path], report: Report) -> None:
    shutil.rmtree(folders.logs, ignore_errors=True)  # kept until now: they may tell why the last one failed
    endpoints = choose_endpoints()
    credentials = make_credentials(folders, endpoints)
    folders.cni_configuration.mkdir(parents=True)
    (folders.cni_configuration / "10-claas.conflist").write_text(render_cni(folders.run / "addresses"))
    with ThreadPoolExecutor(1) as pool:
        runtime = pool.submit(start_containerd, folders, programs[Binary.PAUSE])
        start_control_plane(
            folders,
            endpoints,
            credentials,
            programs,
            light=False,
            timeout_seconds=READY_TIMEOUT_SECONDS,
        )
        runtime.result()
    report("containerd and the API server answer")
    start_node(folders, endpoints, credentials, programs, choose_local_ports())
    _write_admin_kubeconfig(folders, endpoints, credentials)
    kubectl_for(folders.kubeconfig).apply([storage_class()])
    _wait_for_node(folders)
    report("the node is ready")


def _write_admin_kubeconfig(folders: ClusterFolders, endpoints: Endpoints, credentials: Credentials) -> None:
    text = render_kubeconfig(endpoints.url, authority=credentials.authority.path, token=credentials.token)
    write_private(folders.kubeconfig, text)


def _wait_for_node(folders: ClusterFolders) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        for each in process.recorded(folders.records):
            if not process.is_alive(each):
                log_path = folders.logs / f"{each.name}.log"
                raise StartError(f"{each.name} ended while the node came up; {process.tail(log_path)}")
        if _node_is_ready(folders.kubeconfig):
            return
        time.sleep(POLL_SECONDS)
    log_path = folders.logs / "kubelet.log"
    raise StartError(f"the node was not Ready in {READY_TIMEOUT_SECONDS:.0f} s; {process.tail(log_path)}")


def down(*, purge: bool = False) -> None:
    """Take the full cluster down; images stay for the next one unless `purge` is set."""
    if uses_current_context():
        return
    host.require_root()
    folders = full_cluster_folders()
    with exclusive(folders):
        sweep(folders, purge=purge)
