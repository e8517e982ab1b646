"""Host settings that the cluster changes, remembered and put back."""

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

# The kubelet sets the kernel ones for every node; the bridge plugin and kube-proxy the network ones.
SETTINGS = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/route_localnet",
    "net/bridge/bridge-nf-call-iptables",
    "net/netfilter/nf_conntrack_max",
    "net/netfilter/nf_conntrack_tcp_timeout_established",
    "net/netfilter/nf_conntrack_tcp_timeout_close_wait",
)
# Folders that containerd and the kubelet make wherever they run, whatever their configuration says.
FOLDERS = (
    "/var/lib/kubelet/device-plugins",
    "/var/lib/kubelet",
    "/var/lib/cni/results",
    "/var/lib/cni/cache",
    "/var/lib/cni",
    "/var/log/containers",
    "/run/containerd/s",
    "/run/containerd",
)
SYSCTL_ROOT = Path("/proc/sys")


@dataclass(frozen=True)
class HostState:
    """Values of kernel settings, and the folders that were absent, before the cluster came up."""

    settings: dict[str, str]
    absent_folders: list[str]


def capture() -> HostState:
    """Read the settings as they are now."""
    settings = {}
    for name in SETTINGS:
        with contextlib.suppress(OSError):
            settings[name] = (SYSCTL_ROOT / name).read_text().strip()
    return HostState(settings, [each for each in FOLDERS if not Path(each).exists()])


def remember(path: Path) -> None:
    """Write the host's state, unless an earlier cluster that was never brought down already did."""
    if not path.exists():
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(capture())))
        partial.rename(path)


def restore(path: Path) -> None:
    """Put back what was remembered, and forget it."""
    if not path.exists():
        return
    state = HostState(**json.loads(path.read_text()))
    for name, value in state.settings.items():
        setting = SYSCTL_ROOT / name
        with contextlib.suppress(OSError):
            if setting.read_text().strip() != value:
                setting.write_text(value)
    for folder in state.absent_folders:
        _remove_remains(Path(folder))
    path.unlink()


def _remove_remains(folder: Path) -> None:
    """Remove a folder that only holds what nobody uses any more: sockets, dangling links, plain files."""
    if not folder.is_dir():
        return
    for entry in folder.iterdir():
        if not entry.is_dir() or entry.is_symlink():
            entry.unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()
