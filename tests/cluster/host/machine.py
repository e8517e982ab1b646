"""What the full cluster asks of the machine: Linux, root, a few packages, cgroups, free ports."""

import ipaddress
import json
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.errors import CommandError, PrerequisiteError
from tests.cluster.host.process import run
from tests.cluster.layout import API_PORT, BRIDGE, CNI_PLUGINS, KUBELET_PORT, NODE_ADDRESS, POD_RANGE, SERVICE_RANGE

APT_TIMEOUT_SECONDS = 600.0
APT_RETRY_SECONDS = 1.0
_APT_LOCKED = ("Could not get lock", "Unable to acquire the dpkg")
# Images are built while the cluster comes up, and both may ask for packages.
_one_at_a_time = threading.Lock()
REQUIRED_CONTROLLERS = frozenset({"cpu", "cpuset", "memory", "pids"})


@dataclass(frozen=True)
class Tool:
    """A program that must be there and the Debian package that brings it."""

    path: str
    package: str


CLUSTER_TOOLS = (
    Tool("containerd", "containerd"),
    Tool("ctr", "containerd"),
    Tool("containerd-shim-runc-v2", "containerd"),
    Tool("runc", "runc"),
    Tool(str(CNI_PLUGINS / "bridge"), "containernetworking-plugins"),
    Tool("nft", "nftables"),
    Tool("ip", "iproute2"),
    Tool("iptables", "iptables"),
    Tool("conntrack", "conntrack"),
    Tool("mount", "mount"),
)
IMAGE_TOOLS = (
    Tool("buildah", "buildah"),
    Tool("skopeo", "skopeo"),
    Tool("debootstrap", "debootstrap"),
    Tool("tar", "tar"),
)


def missing_tools(tools: Sequence[Tool]) -> list[Tool]:
    """Those tools that are neither on PATH nor at their absolute path."""
    return [tool for tool in tools if shutil.which(tool.path) is None]


def ensure_tools(tools: Sequence[Tool]) -> None:
    """Install what is missing with apt, or name it. Raises `PrerequisiteError`."""
    missing = missing_tools(tools)
    if not missing:
        return
    packages = sorted({tool.package for tool in missing})
    names = ", ".join(tool.path for tool in missing)
    advice = f"missing on this machine: {names}; install the packages {' '.join(packages)}"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise PrerequisiteError(advice)
    try:
        with _one_at_a_time:
            _apt_get("update")
            _apt_get("install", "-y", "--no-install-recommends", *packages)
    except CommandError as error:
        raise PrerequisiteError(f"{advice} (apt-get failed: {error})") from error
    if still := missing_tools(tools):
        raise PrerequisiteError(f"still missing after apt-get: {', '.join(tool.path for tool in still)}")


def _apt_get(*arguments: str) -> None:
    """Run apt-get; while another program has its lock (on a fresh machine often unattended-upgrades), wait."""
    deadline = time.monotonic() + APT_TIMEOUT_SECONDS
    environment = {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    while True:
        try:
            run(["apt-get", "-q", *arguments], timeout_seconds=APT_TIMEOUT_SECONDS, environment=environment)
        except CommandError as error:
            if not any(said in str(error) for said in _APT_LOCKED) or time.monotonic() > deadline:
                raise
            time.sleep(APT_RETRY_SECONDS)
        else:
            return


def require_root() -> None:
    """Raise `PrerequisiteError` unless this is root on Linux."""
    if sys.platform != "linux":
        raise PrerequisiteError("the full cluster needs Linux; use CLUSTER=current with a cluster you have")
    if os.geteuid() != 0:
        raise PrerequisiteError(
            "the full cluster needs root (it makes a bridge, mounts and cgroups): run as root, "
            "or use CLUSTER=current with a cluster you have"
        )


@dataclass(frozen=True)
class CgroupHierarchy:
    """One mounted cgroup hierarchy and the controllers in it (those of cgroup.controllers for v2)."""

    mount_point: Path
    controllers: frozenset[str]
    is_v2: bool


def parse_cgroup_mounts(mountinfo: str) -> list[CgroupHierarchy]:
    """Read /proc/self/mountinfo; a v2 hierarchy is given without its controllers."""
    found = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        mount_point = Path(before.split(" ")[4])
        if kind == "cgroup":
            controllers = frozenset(options.split(",")) & {*REQUIRED_CONTROLLERS, "cpuacct", "hugetlb"}
            found.append(CgroupHierarchy(mount_point, controllers, is_v2=False))
        elif kind == "cgroup2":
            found.append(CgroupHierarchy(mount_point, frozenset(), is_v2=True))
    return found


def cgroup_hierarchies() -> list[CgroupHierarchy]:
    """Every cgroup hierarchy mounted here; raises `PrerequisiteError` when a needed controller is in none."""
    hierarchies = []
    for each in parse_cgroup_mounts(Path("/proc/self/mountinfo").read_text()):
        controllers = each.controllers
        if each.is_v2:
            controllers = frozenset((each.mount_point / "cgroup.controllers").read_text().split())
        hierarchies.append(CgroupHierarchy(each.mount_point, controllers, each.is_v2))
    available = frozenset().union(*(each.controllers for each in hierarchies))
    if missing := REQUIRED_CONTROLLERS - available:
        raise PrerequisiteError(
            f"no cgroup hierarchy with {', '.join(sorted(missing))} is mounted: mount cgroup v2 on "
            "/sys/fs/cgroup, or one v1 hierarchy per controller below it"
        )
    return hierarchies


def require_free_ports() -> None:
    """Raise `PrerequisiteError` when something listens on a port that the cluster needs, on every address or
    on the bridge's, which must be there already."""
    for port, purpose in ((API_PORT, "kube-apiserver"), (KUBELET_PORT, "kubelet")):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((NODE_ADDRESS, port))
            except OSError as error:
                raise PrerequisiteError(
                    f"port {port}, which {purpose} needs, is in use: stop what listens there "
                    f"(`ss -ltnp 'sport = :{port}'` names it)"
                ) from error


def require_free_ranges() -> None:
    """Raise `PrerequisiteError` when a route of this machine overlaps the cluster's address ranges."""
    wanted = [ipaddress.ip_network(each) for each in (POD_RANGE, SERVICE_RANGE)]
    for route in json.loads(run(["ip", "-4", "-json", "route"]) or "[]"):
        if route["dst"] == "default" or route.get("dev") == BRIDGE:
            continue
        network = ipaddress.ip_network(route["dst"], strict=False)
        if any(network.overlaps(each) for each in wanted):
            raise PrerequisiteError(
                f"the route {network} on {route.get('dev')} overlaps the cluster's ranges "
                f"{POD_RANGE} and {SERVICE_RANGE}: the cluster can't run beside it"
            )


def require_overlay() -> None:
    """Raise `PrerequisiteError` when the kernel has no overlay file system."""
    if "\toverlay\n" not in Path("/proc/filesystems").read_text():
        raise PrerequisiteError("the kernel has no overlay file system: load the module `overlay`")
