"""Where a vLLM pod sees the adapter's folder."""

from __future__ import annotations

from claas_operator.core import AdapterObject, Pod


def storage_path(pod: Pod, adapter: AdapterObject) -> str | None:
    """Where a vLLM pod sees the adapter's folder: the mount of the adapter's claim in its vLLM container."""
    claim = adapter.spec.storage.claim_name
    volumes = {
        volume.name
        for volume in pod.spec.volumes
        if volume.persistent_volume_claim is not None and volume.persistent_volume_claim.claim_name == claim
    }
    container = pod.spec.container(adapter.spec.serving.container)
    folder = adapter.storage_path
    for mount in container.volume_mounts if container is not None else ():
        if mount.name not in volumes:
            continue
        root = mount.mount_path.rstrip("/")
        if not mount.sub_path:
            return f"{root}/{folder}"
        below = mount.sub_path.strip("/")
        if folder == below or folder.startswith(f"{below}/"):
            return f"{root}{folder.removeprefix(below)}"
    return None
