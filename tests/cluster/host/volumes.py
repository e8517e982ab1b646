"""Folders of the node as PersistentVolumes.

`local` volumes honour fsGroup, where hostPath ones do not, so that a pod that is not root can write.
"""

from collections.abc import Mapping
from pathlib import Path

from tests.cluster.errors import PrerequisiteError
from tests.cluster.host.process import run
from tests.cluster.layout import NODE_NAME, STORAGE_CLASS, ClusterFolders

Manifest = Mapping[str, object]


def storage_class() -> Manifest:
    """The StorageClass of all volumes here; a claim is bound at once."""
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": STORAGE_CLASS,
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "Immediate",
    }


def make_folder(folders: ClusterFolders, name: str) -> Path:
    """A folder of the cluster's own for a volume; it goes when the cluster goes down."""
    path = folders.volumes / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def make_limited_folder(folders: ClusterFolders, name: str, *, size_mebibytes: int) -> Path:
    """A folder that really is full at its size: a tmpfs, unmounted when the cluster goes down."""
    path = make_folder(folders, name)
    if path.is_mount():
        raise PrerequisiteError(f"{path} is mounted already: choose another name for the volume")
    run(["mount", "-t", "tmpfs", "-o", f"size={size_mebibytes}m", f"claas-{name}", str(path)])
    return path


def remove_folder(path: Path) -> None:
    """Unmount a limited folder; a plain one is left to `down`."""
    if path.is_mount():
        run(["umount", "--lazy", str(path)])


def persistent_volume(
    name: str,
    path: Path,
    *,
    capacity: str = "10Gi",
    access_mode: str = "ReadWriteMany",
    claim: tuple[str, str] | None = None,
) -> Manifest:
    """A `local` PersistentVolume of a folder. `claim` (namespace, name) reserves it for one claim."""
    spec: dict[str, object] = {
        "capacity": {"storage": capacity},
        "accessModes": [access_mode],
        "persistentVolumeReclaimPolicy": "Retain",
        "storageClassName": STORAGE_CLASS,
        "local": {"path": str(path)},
        "nodeAffinity": {
            "required": {
                "nodeSelectorTerms": [
                    {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [NODE_NAME]}]}
                ]
            }
        },
    }
    if claim is not None:
        namespace, claim_name = claim
        spec["claimRef"] = {"namespace": namespace, "name": claim_name}
    return {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec}


def persistent_volume_claim(
    name: str,
    namespace: str,
    *,
    capacity: str = "10Gi",
    access_mode: str = "ReadWriteMany",
    volume: str | None = None,
) -> Manifest:
    """A claim of the cluster's StorageClass; `volume` names the PersistentVolume that it must get."""
    spec: dict[str, object] = {
        "accessModes": [access_mode],
        "storageClassName": STORAGE_CLASS,
        "resources": {"requests": {"storage": capacity}},
    }
    if volume is not None:
        spec["volumeName"] = volume
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }
