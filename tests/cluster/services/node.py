"""Flags and configuration files of the processes that make a node and run controllers, and starting them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.host import process
from tests.cluster.kubeconfig import render_kubeconfig, write_private
from tests.cluster.layout import (
    CGROUP_NAME,
    KUBELET_PORT,
    NODE_ADDRESS,
    NODE_NAME,
    POD_RANGE,
    ClusterFolders,
    LocalPorts,
)
from tests.cluster.services.binaries import Binary
from tests.cluster.services.certificates import KeyPair, make_certificate
from tests.cluster.services.control_plane import LOOPBACK, Credentials, Endpoints


@dataclass(frozen=True)
class Identity:
    """A name and a group that RBAC's built-in rules know."""

    user: str
    group: str | None = None


IDENTITIES = {
    Binary.CONTROLLER_MANAGER: Identity("system:kube-controller-manager"),
    Binary.SCHEDULER: Identity("system:kube-scheduler"),
    Binary.KUBELET: Identity(f"system:node:{NODE_NAME}", "system:nodes"),
    Binary.PROXY: Identity("system:kube-proxy"),
}


def write_client_kubeconfig(
    binary: Binary, folders: ClusterFolders, endpoints: Endpoints, credentials: Credentials
) -> Path:
    """Give one component a certificate and a kubeconfig of its own."""
    identity = IDENTITIES[binary]
    client = make_certificate(
        credentials.authority,
        folders.certificates,
        binary.value,
        common_name=identity.user,
        organisation=identity.group,
    )
    text = render_kubeconfig(endpoints.url, authority=credentials.authority.path, client=client)
    return write_private(folders.certificates / f"{binary.value}.kubeconfig", text)


def kubelet_configuration(
    folders: ClusterFolders, ports: LocalPorts, authority: Path, server: KeyPair
) -> Mapping[str, object]:
    """The kubelet's configuration: pods live in a cgroup of the cluster's own, and a nearly full disk evicts
    nothing. There is no cluster DNS: a pod's resolver is its own loopback, where every look-up is refused at
    once (with none, each pod would get a warning event)."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": NODE_ADDRESS,
        "port": KUBELET_PORT,
        "readOnlyPort": 0,
        "healthzBindAddress": LOOPBACK,
        "healthzPort": ports.kubelet_health,
        "tlsCertFile": str(server.certificate),
        "tlsPrivateKeyFile": str(server.key),
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(authority)},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": f"unix://{folders.containerd_socket}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{CGROUP_NAME}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "makeIPTablesUtilChains": False,
        "clusterDNS": [LOOPBACK],
        "resolvConf": str(folders.run / "resolv.conf"),
        "podLogsDir": str(folders.logs / "pods"),
        "volumePluginDir": str(folders.run / "volume-plugins"),
        "maxPods": 200,
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "0%",
            "nodefs.inodesFree": "0%",
            "imagefs.available": "0%",
            "imagefs.inodesFree": "0%",
        },
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "serializeImagePulls": False,
        "kubeAPIQPS": 200,
        "kubeAPIBurst": 400,
        "eventRecordQPS": 0,
    }


def proxy_configuration(kubeconfig: Path, ports: LocalPorts) -> Mapping[str, object]:
    """kube-proxy's configuration; zeros leave the host's connection tracking limits alone."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clusterCIDR": POD_RANGE,
        "hostnameOverride": NODE_NAME,
        "bindAddress": NODE_ADDRESS,
        "healthzBindAddress": f"{LOOPBACK}:{ports.proxy_health}",
        "metricsBindAddress": f"{LOOPBACK}:{ports.proxy_metrics}",
        "nodePortAddresses": [f"{NODE_ADDRESS}/32"],
        "clientConnection": {"kubeconfig": str(kubeconfig), "qps": 100, "burst": 200},
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
    }


def controller_manager_flags(kubeconfig: Path, credentials: Credentials, ports: LocalPorts) -> list[str]:
    """kube-controller-manager: alone, so without leader election; quick to bind volumes."""
    return [
        f"--kubeconfig={kubeconfig}",
        "--leader-elect=false",
        f"--bind-address={LOOPBACK}",
        f"--secure-port={ports.controller_manager}",
        "--use-service-account-credentials",
        f"--service-account-private-key-file={credentials.service_account.private}",
        f"--root-ca-file={credentials.authority.path}",
        "--pvclaimbinder-sync-period=2s",
        "--kube-api-qps=200",
        "--kube-api-burst=400",
        "--profiling=false",
    ]


def scheduler_flags(kubeconfig: Path, ports: LocalPorts) -> list[str]:
    """kube-scheduler: alone, so without leader election."""
    return [
        f"--kubeconfig={kubeconfig}",
        "--leader-elect=false",
        f"--bind-address={LOOPBACK}",
        f"--secure-port={ports.scheduler}",
        "--kube-api-qps=200",
        "--kube-api-burst=400",
        "--profiling=false",
    ]


def kubelet_flags(kubeconfig: Path, configuration: Path, folders: ClusterFolders) -> list[str]:
    """The kubelet's flags that are not part of its configuration file."""
    return [
        f"--config={configuration}",
        f"--kubeconfig={kubeconfig}",
        f"--root-dir={folders.kubelet_root}",
        f"--cert-dir={folders.run / 'kubelet-certificates'}",
        f"--hostname-override={NODE_NAME}",
        f"--node-ip={NODE_ADDRESS}",
    ]


def start_node(
    folders: ClusterFolders,
    endpoints: Endpoints,
    credentials: Credentials,
    binaries: Mapping[Binary, Path],
    ports: LocalPorts,
) -> None:
    """Start kube-controller-manager, kube-scheduler, kubelet and kube-proxy; the API answers already."""
    kubeconfigs = {each: write_client_kubeconfig(each, folders, endpoints, credentials) for each in IDENTITIES}
    (folders.run / "resolv.conf").write_text("")
    server = make_certificate(
        credentials.authority,
        folders.certificates,
        "kubelet-server",
        common_name=NODE_NAME,
        hosts=(NODE_NAME, NODE_ADDRESS),
    )
    kubelet_file = folders.run / "kubelet.json"
    kubelet_file.write_text(json.dumps(kubelet_configuration(folders, ports, credentials.authority.path, server)))
    proxy_file = folders.run / "kube-proxy.json"
    proxy_file.write_text(json.dumps(proxy_configuration(kubeconfigs[Binary.PROXY], ports)))
    flags = {
        Binary.CONTROLLER_MANAGER: controller_manager_flags(
            kubeconfigs[Binary.CONTROLLER_MANAGER], credentials, ports
        ),
        Binary.SCHEDULER: scheduler_flags(kubeconfigs[Binary.SCHEDULER], ports),
        Binary.KUBELET: kubelet_flags(kubeconfigs[Binary.KUBELET], kubelet_file, folders),
        Binary.PROXY: [f"--config={proxy_file}"],
    }
    for binary, arguments in flags.items():
        process.start(
            binary.value,
            [binaries[binary], *arguments],
            log_path=folders.logs / f"{binary.value}.log",
            record_folder=folders.records,
        )
