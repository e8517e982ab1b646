"""Names, addresses and folders of the full cluster. There is one full cluster on a machine at most."""

from dataclasses import dataclass
from pathlib import Path

from tests.cluster.paths import cluster_root
from tests.cluster.services.control_plane import Endpoints, Folders, free_ports

NODE_NAME = "claas-node"
BRIDGE = "claas0"
BRIDGE_MAC = "0a:c1:aa:50:00:01"
NODE_ADDRESS = "10.213.0.1"
POD_RANGE = "10.213.0.0/24"
SERVICE_RANGE = "10.214.0.0/24"
SERVICE_ADDRESS = "10.214.0.1"
API_PORT = 6443
KUBELET_PORT = 10250
CGROUP_NAME = "claas-cluster"
CNI_NETWORK = "claas"
CNI_PLUGINS = Path("/usr/lib/cni")
PAUSE_IMAGE = "localhost/claas-pause:1"
STORAGE_CLASS = "local"
CONTAINERD_NAMESPACE = "k8s.io"


@dataclass(frozen=True)
class ClusterFolders(Folders):
    """The full cluster's state. `content` survives `down`; the rest does not."""

    @property
    def content(self) -> Path:
        """containerd's images and snapshots."""
        return self.root / "containerd"

    @property
    def containerd_state(self) -> Path:
        return self.run / "containerd"

    @property
    def containerd_socket(self) -> Path:
        return self.run / "containerd.sock"

    @property
    def kubelet_root(self) -> Path:
        return self.run / "kubelet"

    @property
    def cni_configuration(self) -> Path:
        return self.run / "cni"

    @property
    def volumes(self) -> Path:
        """Folders that serve as PersistentVolumes."""
        return self.root / "volumes"

    @property
    def host_state(self) -> Path:
        """What the host's settings were before the cluster changed them."""
        return self.root / "host-state.json"


@dataclass(frozen=True)
class LocalPorts:
    """Ports on loopback that nobody outside this package needs to know."""

    scheduler: int
    controller_manager: int
    kubelet_health: int
    proxy_health: int
    proxy_metrics: int


def full_cluster_folders() -> ClusterFolders:
    """The folders of this user's full cluster."""
    return ClusterFolders(cluster_root())


def choose_endpoints() -> Endpoints:
    """The API server listens on the bridge, where pods and the host reach it; etcd on loopback."""
    client_port, peer_port = free_ports(2)
    return Endpoints(NODE_ADDRESS, API_PORT, client_port, peer_port, SERVICE_RANGE, SERVICE_ADDRESS)


def choose_local_ports() -> LocalPorts:
    """Free loopback ports for health and metrics."""
    return LocalPorts(*free_ports(5))
