"""OCI images as data: enough to make an image of one file and to stream an image into containerd."""

import hashlib
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
REFERENCE_ANNOTATION = "org.opencontainers.image.ref.name"
IMAGE_NAME_ANNOTATION = "io.containerd.image.name"
LAYOUT = json.dumps({"imageLayoutVersion": "1.0.0"}).encode()


@dataclass(frozen=True)
class Blob:
    """Content addressed by its digest."""

    content: bytes

    @property
    def digest(self) -> str:
        return f"sha256:{hashlib.sha256(self.content).hexdigest()}"

    def descriptor(self, media_type: str) -> dict[str, str | int]:
        return {"mediaType": media_type, "digest": self.digest, "size": len(self.content)}


def blob_path(digest: str) -> str:
    """Where a blob lies in an OCI layout."""
    return f"blobs/{digest.replace(':', '/')}"


def add_bytes(archive: tarfile.TarFile, name: str, content: bytes, *, mode: int = 0o644) -> None:
    """Add a file with fixed ownership and time, so that equal content gives equal archives."""
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    entry.mode = mode
    archive.addfile(entry, io.BytesIO(content))


def single_file_image(name: str, program: Path) -> bytes:
    """An OCI archive of an image that holds one static program and runs it."""
    layer_buffer = io.BytesIO()
    with tarfile.open(fileobj=layer_buffer, mode="w") as layer_archive:
        add_bytes(layer_archive, program.name, program.read_bytes(), mode=0o755)
    layer = Blob(layer_buffer.getvalue())
    config = Blob(
        json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {"Entrypoint": [f"/{program.name}"], "User": "65535:65535"},
                "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
            }
        ).encode()
    )
    manifest = Blob(
        json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "config": config.descriptor(CONFIG_TYPE),
                "layers": [layer.descriptor(LAYER_TYPE)],
            }
        ).encode()
    )
    index = {
        "schemaVersion": 2,
        "manifests": [{**manifest.descriptor(MANIFEST_TYPE), "annotations": {IMAGE_NAME_ANNOTATION: name}}],
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        add_bytes(archive, "oci-layout", LAYOUT)
        add_bytes(archive, "index.json", json.dumps(index).encode())
        for blob in (layer, config, manifest):
            add_bytes(archive, blob_path(blob.digest), blob.content)
    return buffer.getvalue()
