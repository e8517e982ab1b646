"""Light mode: etcd and kube-apiserver alone, for tests that need a real API server and no pods.

No controller runs: nothing is garbage-collected, a deleted namespace stays Terminating, and Jobs make no
pods. Several light clusters can run at once; each has a folder and ports of its own.
"""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.cluster.errors import StartError
from tests.cluster.host import process
from tests.cluster.host.process import ProcessIdentity
from tests.cluster.kubeconfig import render_kubeconfig, write_private
from tests.cluster.paths import light_root
from tests.cluster.services import binaries
from tests.cluster.services.control_plane import (
    LOOPBACK,
    Endpoints,
    Folders,
    free_ports,
    make_credentials,
    start_control_plane,
)

READY_TIMEOUT_SECONDS = 90.0
STOP_GRACE_SECONDS = 5.0
START_ATTEMPTS = 3
SHARED_NAME = "shared"
OWNER_FILE = "owner.json"


@dataclass(frozen=True)
class LightCluster:
    """A running API server. `token` is an administrator's bearer token, `authority` its CA certificate; `etcd_url` is
    where its store listens, without TLS.

    Who comes by `operator_kubeconfig` may do as much, and stands with each request in `audit_log`.
    """

    root: Path
    url: str
    token: str
    kubeconfig: Path
    operator_kubeconfig: Path
    authority: Path
    etcd_url: str
    audit_log: Path


def start_light(name: str, *, owner: ProcessIdentity | None = None) -> LightCluster:
    """Start etcd and kube-apiserver in a fresh state folder of this name.

    With an `owner`, the cluster may be removed by others once that process is gone. A free port may be
    taken by someone else before it is used, so a failed start is tried again with others. Raises
    `StartError` when it fails for good.
    """
    found = binaries.ensure(binaries.LIGHT_BINARIES, honour_assets=True)
    root = light_root() / name
    for attempt in range(1, START_ATTEMPTS + 1):
        stop_light(name)
        folders = Folders(root)
        root.mkdir(parents=True)
        if owner is not None:
            (root / OWNER_FILE).write_text(json.dumps(asdict(owner)))
        api_port, client_port, peer_port = free_ports(3)
        endpoints = Endpoints(LOOPBACK, api_port, client_port, peer_port, "10.214.0.0/24", "10.214.0.1")
        credentials = make_credentials(folders, endpoints)
        try:
            start_control_plane(
                folders, endpoints, credentials, found, light=True, timeout_seconds=READY_TIMEOUT_SECONDS
            )
        except StartError:
            if attempt == START_ATTEMPTS:
                stop_light(name)
                raise
            continue
        except BaseException:
            stop_light(name)
            raise
        authority = credentials.authority.path
        for path, token in (
            (folders.operator_kubeconfig, credentials.operator_token),
            (folders.kubeconfig, credentials.token),
        ):
            write_private(path, render_kubeconfig(endpoints.url, authority=authority, token=token))
        return LightCluster(
            root,
            endpoints.url,
            credentials.token,
            folders.kubeconfig,
            folders.operator_kubeconfig,
            authority,
            f"http://{LOOPBACK}:{client_port}",
            folders.audit_log,
        )
    raise AssertionError("unreachable: the last attempt returns or raises")


def stop_light(name: str) -> None:
    """Stop the light cluster of this name, if there is one, and remove its folder."""
    folders = Folders(light_root() / name)
    # The API server first: it retries noisily, and slowly, once etcd is gone.
    order = sorted(process.recorded(folders.records), key=lambda each: each.name == "etcd")
    for each in order:
        process.stop(each, grace_seconds=STOP_GRACE_SECONDS, record_folder=folders.records)
    shutil.rmtree(folders.root, ignore_errors=True)


def is_running(name: str) -> bool:
    """Whether both processes of the light cluster of this name run and its kubeconfig was written."""
    folders = Folders(light_root() / name)
    alive = {each.name for each in process.recorded(folders.records) if process.is_alive(each)}
    return folders.kubeconfig.exists() and alive == {"etcd", "kube-apiserver"}


def remove_orphans() -> None:
    """Stop light clusters whose owner was killed before it could."""
    for owner_file in light_root().glob(f"*/{OWNER_FILE}"):
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            if not process.is_alive(ProcessIdentity(**json.loads(owner_file.read_text()))):
                stop_light(owner_file.parent.name)


@contextlib.contextmanager
def light_cluster() -> Iterator[LightCluster]:
    """A light cluster for the length of a `with` block. One whose owner was killed is removed by the next."""
    remove_orphans()
    own = process.read_stat(os.getpid())
    if own is None:
        raise StartError("this process is not in /proc: light mode needs Linux with /proc mounted")
    name = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        yield start_light(name, owner=ProcessIdentity("owner", os.getpid(), own.start_ticks))
    finally:
        stop_light(name)
