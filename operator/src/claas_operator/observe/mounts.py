"""Path of the adapter's folder in a vLLM pod, by the kubelet's rules for mounts."""

from __future__ import annotations

from dataclasses import dataclass
from posixpath import normpath

from claas_kube.objects.pods import Container, ContainerMount, Pod
from claas_kube.objects.resources import AdapterObject
from claas_kube.objects.workloads import Deployment
from claas_operator.plan.server.environment import Environment, environment_of, expanded, unknown_references

_DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"
_VERSIONS = "versions"
"""The subfolder of the adapter's folder that vLLM reads."""


@dataclass(frozen=True)
class MountedFolder:
    """Path of the adapter's folder in the container; `path` is None if it is not mounted, and `problem` says why."""

    path: str | None
    problem: str = ""


def serving_container(deployment: Deployment | None, adapter: AdapterObject) -> str | None:
    """Name of the container that runs vLLM: from the spec, or else the first one of the Deployment's template. The
    first one of a pod may be an injected sidecar.
    """
    named = adapter.spec.serving.container
    if named is not None or deployment is None:
        return named
    containers = deployment.spec.template.spec.containers
    return containers[0].name if containers else None


def mounted_folder(pod: Pod, adapter: AdapterObject, deployment: Deployment | None) -> MountedFolder:
    """Path of the adapter's folder in a vLLM pod."""
    container = _container(pod, adapter, deployment)
    if container is None:
        return MountedFolder(None, f"it has no container {serving_container(deployment, adapter)}")
    claim = adapter.spec.storage.claim_name
    volumes = {
        volume.name
        for volume in pod.spec.volumes
        if volume.persistent_volume_claim is not None and volume.persistent_volume_claim.claim_name == claim
    }
    environment = environment_of(container, pod)
    mounts = [mount for mount in container.volume_mounts if mount.name in volumes]
    problems = []
    for mount in mounts:
        found = _through(mount, adapter.storage_path, environment)
        if found.path is not None and _governing(container, _join(found.path, _VERSIONS)) is mount:
            return found
        covered = f"another mount lies over {found.path} of container {container.name}"
        problems.append(found.problem or covered)
    if not problems:
        problems.append(f"its container {container.name} does not mount PersistentVolumeClaim {claim}")
    return MountedFolder(None, "; ".join(problems))


def _container(pod: Pod, adapter: AdapterObject, deployment: Deployment | None) -> Container | None:
    """The container that runs vLLM in a pod."""
    name = serving_container(deployment, adapter)
    if name is not None:
        found = pod.spec.container(name)
        if found is not None or adapter.spec.serving.container is not None:
            return found
    # A pod of an earlier template, whose container had another name.
    return pod.spec.container(pod.metadata.annotations.get(_DEFAULT_CONTAINER)) or pod.spec.container(None)


def _through(mount: ContainerMount, folder: str, environment: Environment) -> MountedFolder:
    """Path of the folder in one mount of the claim."""
    root = _absolute(mount.mount_path)
    below = mount.sub_path
    if mount.sub_path_expr:
        unknown = unknown_references(mount.sub_path_expr, environment)
        if unknown:
            return MountedFolder(
                None,
                f"the mount at {root} has subPathExpr {mount.sub_path_expr}, and the value of {', '.join(unknown)}"
                " can't be read from the pod: give the variable a value, or a fieldRef of the pod's metadata",
            )
        below = expanded(mount.sub_path_expr, environment)
    below = normpath(below.strip("/")).removeprefix(".").strip("/") if below else ""
    if not below:
        return MountedFolder(_join(root, folder))
    if folder == below or folder.startswith(f"{below}/"):
        return MountedFolder(_join(root, folder.removeprefix(below).strip("/")))
    if below == f"{folder}/{_VERSIONS}" and root.endswith(f"/{_VERSIONS}"):
        # The mount shows only the versions, at their place in the adapter's folder.
        return MountedFolder(root.removesuffix(f"/{_VERSIONS}") or "/")
    return MountedFolder(
        None, f"the mount at {root} shows {below} of the volume, and the adapter's folder there is {folder}"
    )


def _governing(container: Container, path: str) -> ContainerMount | None:
    """The mount that contains a path of the container: the one with the longest mount path."""
    above = [mount for mount in container.volume_mounts if f"{path}/".startswith(_below(mount))]
    return max(above, key=lambda mount: len(_below(mount)), default=None)


def _below(mount: ContainerMount) -> str:
    return f"{_absolute(mount.mount_path).rstrip('/')}/"


def _absolute(path: str) -> str:
    return normpath(f"/{path.strip('/')}")


def _join(root: str, folder: str) -> str:
    return f"{root.rstrip('/')}/{folder}".rstrip("/") or "/"
