"""What a container's process is started with: arguments, environment, sources, views of Volumes."""

import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.peers.modal.containers.container import Container
from tests.peers.modal.private import ENTRYPOINT, api_pb2, copied
from tests.peers.modal.state.apps import Apps, Function
from tests.peers.modal.state.volumes import View, Volumes

LISTEN_HOST = "CLAAS_MODAL_LISTEN_HOST"
"""Where a Server's process listens: on one machine two containers can't have the same port of all addresses."""


@dataclass(frozen=True)
class Place:
    """What all containers of a peer have in common."""

    folder: Path
    sockets: Path
    """Elsewhere, for a socket's path must be short."""
    sources: Path
    environment: dict[str, str]
    mounts: bool
    """Whether Volumes are mounted; else they are symbolic links."""


def new_host() -> str:
    """A loopback address that other containers, also those of other peers, hardly have."""
    return f"127.{random.randint(16, 250)}.{random.randint(1, 250)}.{random.randint(2, 250)}"


def prepare(
    function: Function,
    container_id: str,
    place: Place,
    volumes: Volumes,
) -> Container:
    """A container that was not started yet, whose views of Volumes are not open yet."""
    folder = place.folder / container_id
    folder.mkdir(parents=True)
    views = {}
    for mount in function.definition.volume_mounts:
        volume = volumes.by_id(mount.volume_id)
        shared = mount.read_only and not place.mounts
        own = folder / "volumes" / mount.volume_id
        view = View(volume, volume.folder if shared else own, mount.read_only)
        views[mount.volume_id] = view
    return Container(
        container_id, function, function.version, folder, place.sockets / container_id, views, new_host()
    )


@dataclass(frozen=True)
class Start:
    """What a container's process is started with."""

    arguments: api_pb2.ContainerArguments
    environment: dict[str, str]
    sources: list[api_pb2.MountFile]


def specify(container: Container, place: Place, start: Start) -> dict[str, object]:
    """The supervisor's SPEC; writes the arguments and puts the sources in place."""
    folder, definition = container.folder, container.function.definition
    (folder / "arguments").write_bytes(start.arguments.SerializeToString())
    root = folder / "sources"
    for file in start.sources:
        goal = root / file.filename.lstrip("/")
        goal.parent.mkdir(parents=True, exist_ok=True)
        goal.unlink(missing_ok=True)
        os.link(place.sources / file.sha256_hex, goal)
    home = folder / "home"
    for one in (root / "root", home, folder / "tmp", folder / "root"):
        one.mkdir(parents=True, exist_ok=True)
    binds = []
    for mount in definition.volume_mounts:
        source = container.views[mount.volume_id].folder / mount.sub_path.strip("/")
        source.mkdir(parents=True, exist_ok=True)
        binds.append([str(source), mount.mount_path, "ro" if mount.read_only else "rw"])
    environment = {
        **{name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ},
        "HOME": str(home),
        "TMPDIR": str(folder / "tmp"),
        "PYTHONUNBUFFERED": "1",
        **place.environment,
        **start.environment,
        "PYTHONPATH": str(root / "root"),
        LISTEN_HOST: container.host,
        "MODAL_IS_REMOTE": "1",
        "MODAL_TASK_ID": container.task_id,
        "MODAL_IMAGE_ID": definition.image_id,
        "MODAL_ENVIRONMENT": container.function.app.environment,
        "MODAL_SERVER_URL": f"unix://{container.socket}",
        "MODAL_CONTAINER_ARGUMENTS_PATH": str(folder / "arguments"),
        "MODAL_RESTORE_STATE_PATH": str(folder / "restore.json"),
    }
    if definition.is_checkpointing_function:
        environment["MODAL_ENABLE_SNAP_RESTORE"] = "1"
    return {
        "root": str(folder / "root") if place.mounts else "",
        "binds": binds,
        "command": [sys.executable, "-m", ENTRYPOINT],
        "environment": environment,
        "folder": str(root / "root"),
    }


def describe(container: Container, apps: Apps) -> Start:
    """What the function's container is told: its arguments, environment and sources."""
    function, app = container.function, container.function.app
    definition = copied(function.definition)
    objects = [
        api_pb2.Object(object_id=each.id, function_handle_metadata=each.handle())
        for each in apps.functions.values()
        if each.app is app
    ]
    objects += [
        api_pb2.Object(object_id=id, class_handle_metadata=api_pb2.ClassHandleMetadata())
        for id in app.class_ids.values()
    ]
    known = {each.object_id for each in objects}
    for id in [dependency.object_id for dependency in definition.object_dependencies]:
        if id not in known:
            objects.append(api_pb2.Object(object_id=id))
    mount_ids = apps.mount_ids(definition)
    environment = apps.image_environment(definition.image_id)
    for secret_id in definition.secret_ids:
        environment |= apps.secrets[secret_id].values
    layout = api_pb2.AppLayout(objects=objects, function_ids=app.function_ids, class_ids=app.class_ids)
    arguments = api_pb2.ContainerArguments(
        task_id=container.task_id,
        function_id=function.id,
        app_id=app.id,
        function_def=definition,
        serialized_params=function.variant_of.parameters if function.variant_of else b"",
        environment_name=app.environment,
        checkpoint_id=f"ch-{container.id}" if definition.is_checkpointing_function else "",
        app_layout=layout,
    )
    sources = [file for mount_id in mount_ids for file in apps.mounts[mount_id].files]
    return Start(arguments, environment, sources)
