"""etcd and kube-apiserver: their flags, and starting them. Both modes of the cluster use this."""

import contextlib
import secrets
import socket
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import audit
from tests.cluster.errors import StartError
from tests.cluster.host import process
from tests.cluster.host.process import ProcessIdentity
from tests.cluster.kubeconfig import write_private
from tests.cluster.services.binaries import Binary
from tests.cluster.services.certificates import (
    Authority,
    KeyPair,
    ServiceAccountKey,
    make_authority,
    make_certificate,
    make_service_account_key,
)

POLL_SECONDS = 0.05
LOOPBACK = "127.0.0.1"
SERVER_NAMES = (
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
)


@dataclass(frozen=True)
class Folders:
    """The state of one cluster on disk."""

    root: Path

    @property
    def records(self) -> Path:
        return self.root / "pids"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def audit_log(self) -> Path:
        return self.logs / "audit.log"

    @property
    def certificates(self) -> Path:
        return self.root / "certificates"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def kubeconfig(self) -> Path:
        return self.root / "kubeconfig"

    @property
    def operator_kubeconfig(self) -> Path:
        return self.root / "operator-kubeconfig"


@dataclass(frozen=True)
class Endpoints:
    """Addresses that the control plane listens on."""

    address: str
    api_port: int
    etcd_client_port: int
    etcd_peer_port: int
    service_range: str
    service_address: str

    @property
    def url(self) -> str:
        return f"https://{self.address}:{self.api_port}"


@dataclass(frozen=True)
class Credentials:
    """What a control plane is made with and its clients need."""

    authority: Authority
    server: KeyPair
    service_account: ServiceAccountKey
    token: str
    operator_token: str
    """An administrator of another name, whose requests a light cluster logs."""
    token_file: Path
    kubelet_client: KeyPair


def free_ports(count: int) -> tuple[int, ...]:
    """Ports of the loopback interface that are free now; all differ."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return tuple(int(each.getsockname()[1]) for each in sockets)


def make_credentials(folders: Folders, endpoints: Endpoints) -> Credentials:
    """Make the authority, the server's certificate, the service account key and the admin's token."""
    folder = folders.certificates
    authority = make_authority(folder)
    hosts = (*SERVER_NAMES, LOOPBACK, endpoints.address, endpoints.service_address)
    token, operator_token = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    lines = [
        f"{each},{user},{user},system:masters\n"
        for each, user in ((token, "claas-admin"), (operator_token, audit.OPERATOR_USER))
    ]
    return Credentials(
        authority=authority,
        server=make_certificate(
            authority, folder, "kube-apiserver", common_name="kube-apiserver", hosts=tuple(dict.fromkeys(hosts))
        ),
        service_account=make_service_account_key(folder),
        token=token,
        operator_token=operator_token,
        kubelet_client=make_certificate(
            authority, folder, "kubelet-client", common_name="claas-kubelet-client", organisation="system:masters"
        ),
        token_file=write_private(folder / "tokens.csv", "".join(lines)),
    )


def etcd_flags(data_folder: Path, endpoints: Endpoints) -> list[str]:
    """etcd without fsync: the data is thrown away with the cluster."""
    client = f"http://{LOOPBACK}:{endpoints.etcd_client_port}"
    peer = f"http://{LOOPBACK}:{endpoints.etcd_peer_port}"
    return [
        f"--data-dir={data_folder}",
        "--name=claas",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=claas={peer}",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def api_server_flags(endpoints: Endpoints, credentials: Credentials, *, light: bool) -> list[str]:
    """Flags of kube-apiserver.

    In light mode no controller makes service accounts, so the admission plugin that demands them is off,
    and the `kubernetes` Service gets no endpoints, since nothing routes to it.
    """
    flags = [
        f"--etcd-servers=http://{LOOPBACK}:{endpoints.etcd_client_port}",
        f"--bind-address={endpoints.address}",
        f"--advertise-address={endpoints.address}",
        f"--secure-port={endpoints.api_port}",
        f"--tls-cert-file={credentials.server.certificate}",
        f"--tls-private-key-file={credentials.server.key}",
        f"--client-ca-file={credentials.authority.path}",
        f"--token-auth-file={credentials.token_file}",
        "--authorization-mode=Node,RBAC",
        "--allow-privileged=true",
        f"--service-cluster-ip-range={endpoints.service_range}",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={credentials.service_account.public}",
        f"--service-account-signing-key-file={credentials.service_account.private}",
        "--profiling=false",
    ]
    if light:
        return [*flags, "--disable-admission-plugins=ServiceAccount", "--endpoint-reconciler-type=none"]
    return [
        *flags,
        # Without this order `kubectl logs` and `exec` would look the node's name up.
        "--kubelet-preferred-address-types=InternalIP",
        f"--kubelet-client-certificate={credentials.kubelet_client.certificate}",
        f"--kubelet-client-key={credentials.kubelet_client.key}",
    ]


def wait_for_api_server(
    endpoints: Endpoints, credentials: Credentials, server: ProcessIdentity, *, log_path: Path, timeout_seconds: float
) -> None:
    """Wait until /readyz says ok. Raises `StartError` with the end of the log when it never does."""
    context = ssl.create_default_context(cafile=str(credentials.authority.path))
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    request = urllib.request.Request(
        f"{endpoints.url}/readyz", headers={"Authorization": f"Bearer {credentials.token}"}
    )
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        if not process.is_alive(server):
            raise StartError(f"kube-apiserver ended while starting; {process.tail(log_path)}")
        with contextlib.suppress(urllib.error.URLError, OSError), opener.open(request, timeout=5) as response:
            if response.status == 200:
                return
        time.sleep(POLL_SECONDS)
    raise StartError(f"kube-apiserver was not ready within {timeout_seconds:.0f} s; {process.tail(log_path)}")


def start_control_plane(
    folders: Folders,
    endpoints: Endpoints,
    credentials: Credentials,
    binaries: dict[Binary, Path],
    *,
    light: bool,
    timeout_seconds: float,
) -> None:
    """Start etcd and kube-apiserver and wait until the API answers."""
    folders.run.mkdir(parents=True, exist_ok=True)
    flags = api_server_flags(endpoints, credentials, light=light)
    if light:
        flags += audit.flags(folders.run / "audit-policy.json", folders.audit_log)
    process.start(
        "etcd",
        [binaries[Binary.ETCD], *etcd_flags(folders.run / "etcd", endpoints)],
        log_path=folders.logs / "etcd.log",
        record_folder=folders.records,
    )
    log_path = folders.logs / "kube-apiserver.log"
    server = process.start(
        "kube-apiserver",
        [binaries[Binary.API_SERVER], *flags],
        log_path=log_path,
        record_folder=folders.records,
    )
    wait_for_api_server(endpoints, credentials, server, log_path=log_path, timeout_seconds=timeout_seconds)
