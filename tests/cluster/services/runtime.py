"""containerd: its configuration, starting it over whatever a predecessor left, and its command line."""

import json
import subprocess
import time
from pathlib import Path

from tests.cluster.errors import CommandError, StartError
from tests.cluster.host import process
from tests.cluster.host.process import ProcessIdentity, run
from tests.cluster.images.oci import single_file_image
from tests.cluster.layout import CNI_PLUGINS, CONTAINERD_NAMESPACE, PAUSE_IMAGE, ClusterFolders

READY_TIMEOUT_SECONDS = 30.0
IMPORT_TIMEOUT_SECONDS = 900.0
POLL_SECONDS = 0.05
NAME = "containerd"


def render_containerd(folders: ClusterFolders) -> str:
    """containerd's configuration.

    `restrict_oom_score_adj` is needed where CAP_SYS_RESOURCE is missing (runc fails without it), and network
    namespaces lie in the state folder so that they can be told from anyone else's.
    """

    def quoted(value: Path | str) -> str:
        return json.dumps(str(value))

    return f"""version = 2
root = {quoted(folders.content)}
state = {quoted(folders.containerd_state)}
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]

[grpc]
  address = {quoted(folders.containerd_socket)}

[plugins."io.containerd.internal.v1.opt"]
  path = {quoted(folders.run / "opt")}

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = {quoted(PAUSE_IMAGE)}
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  stream_server_address = "127.0.0.1"

  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"

      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
        Root = {quoted(folders.run / "runc")}

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = {quoted(CNI_PLUGINS)}
    conf_dir = {quoted(folders.cni_configuration)}
"""


def ctr_command(folders: ClusterFolders, *arguments: str) -> list[str]:
    """A `ctr` command line against this cluster's containerd, in the namespace of its pods."""
    return ["ctr", "--address", str(folders.containerd_socket), "-n", CONTAINERD_NAMESPACE, *arguments]


def ctr(folders: ClusterFolders, *arguments: str, timeout_seconds: float = 60.0) -> str:
    """Run `ctr` and return what it prints."""
    return run(ctr_command(folders, *arguments), timeout_seconds=timeout_seconds)


def start_containerd(folders: ClusterFolders, pause: Path) -> None:
    """Start containerd with no containers in it and the pause image loaded.

    Containers of a killed predecessor are deleted from the metadata, and containerd is then started again,
    since its CRI part read them before.
    """
    server = _start(folders)
    left = ctr(folders, "containers", "list", "-q").split()
    if left:
        ctr(folders, "containers", "delete", *left)
        process.stop(server, grace_seconds=10.0, record_folder=folders.records)
        _start(folders)
    if PAUSE_IMAGE not in ctr(folders, "images", "list", "-q").split():
        import_archive(folders, single_file_image(PAUSE_IMAGE, pause))


def _start(folders: ClusterFolders) -> ProcessIdentity:
    folders.run.mkdir(parents=True, exist_ok=True)
    configuration = folders.run / "containerd.toml"
    configuration.write_text(render_containerd(folders))
    log_path = folders.logs / "containerd.log"
    server = process.start(
        NAME,
        ["containerd", "--config", configuration, "--log-level", "warn"],
        log_path=log_path,
        record_folder=folders.records,
    )
    deadline = time.monotonic() + READY_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        if not process.is_alive(server):
            raise StartError(f"containerd ended while starting; {process.tail(log_path)}")
        if folders.containerd_socket.exists():
            try:
                ctr(folders, "version", timeout_seconds=5)
            except CommandError:
                pass
            else:
                return server
        time.sleep(POLL_SECONDS)
    raise StartError(f"containerd did not answer in {READY_TIMEOUT_SECONDS:.0f} s; {process.tail(log_path)}")


def import_archive(folders: ClusterFolders, archive: bytes) -> None:
    """Import an OCI archive held in memory."""
    result = subprocess.run(
        ctr_command(folders, "images", "import", "-"),
        input=archive,
        capture_output=True,
        timeout=IMPORT_TIMEOUT_SECONDS,
        check=False,
    )
    if result.returncode != 0:
        raise CommandError(f"importing an image failed: {result.stderr.decode(errors='replace').strip()}")
