"""Getting a built image into the cluster's containerd without moving what is there already.

An image is pushed, uncompressed, into one OCI layout that all images share; only those blobs that containerd
lacks are streamed to `ctr images import`. A change of code alone so moves a few hundred kilobytes.
"""

import contextlib
import json
import os
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.errors import CommandError
from tests.cluster.images import buildah
from tests.cluster.images.oci import IMAGE_NAME_ANNOTATION, LAYOUT, REFERENCE_ANNOTATION, add_bytes, blob_path
from tests.cluster.layout import ClusterFolders
from tests.cluster.paths import image_root
from tests.cluster.services.runtime import IMPORT_TIMEOUT_SECONDS, ctr, ctr_command

CONTENT_FOLDER = "io.containerd.content.v1.content"
COPY_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class Descriptor:
    """A reference to a blob."""

    media_type: str
    digest: str
    size: int

    @classmethod
    def parse(cls, document: dict[str, object]) -> "Descriptor":
        """Read a descriptor of an OCI index or manifest."""
        return cls(str(document["mediaType"]), str(document["digest"]), int(str(document["size"])))

    def render(self, annotations: dict[str, str]) -> dict[str, object]:
        """Write a descriptor for an OCI index."""
        return {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": self.size,
            "annotations": annotations,
        }


def layout_folder() -> Path:
    """The OCI layout that all images share."""
    return image_root() / "layout"


def find_manifest(layout: Path, tag: str) -> Descriptor:
    """The manifest of one tag. Raises `CommandError` when the layout does not name it."""
    for entry in json.loads((layout / "index.json").read_text())["manifests"]:
        if entry.get("annotations", {}).get(REFERENCE_ANNOTATION) == tag:
            return Descriptor.parse(entry)
    raise CommandError(f"the OCI layout {layout} has no image {tag}: remove the folder and build again")


def blobs_of(layout: Path, manifest: Descriptor) -> list[Descriptor]:
    """The manifest, its configuration and its layers."""
    document = json.loads((layout / blob_path(manifest.digest)).read_text())
    return [manifest, Descriptor.parse(document["config"]), *map(Descriptor.parse, document["layers"])]


def loaded_names(folders: ClusterFolders) -> set[str]:
    """Names of the images that containerd has."""
    return set(ctr(folders, "images", "list", "-q").split())


def load(folders: ClusterFolders, image: str, names: Sequence[str]) -> None:
    """Load an image from buildah's storage under the given names. Raises `CommandError`."""
    layout = layout_folder()
    tag = image.rpartition("/")[2].replace(":", "-")
    buildah.push_to_layout(image, layout, tag)
    manifest = find_manifest(layout, tag)
    blobs = blobs_of(layout, manifest)
    missing = [blob for blob in blobs if not _content_path(folders, blob).exists()]
    try:
        _import(folders, layout, manifest, missing, names)
    except CommandError:
        if len(missing) == len(blobs):
            raise
        # A blob may lie in the store and yet be unknown to containerd, which was killed in between.
        _import(folders, layout, manifest, blobs, names)
    for blob in blobs:
        _share(layout / blob_path(blob.digest), _content_path(folders, blob))
    _forget_others(layout, keep=tag, repository=tag.rpartition("-")[0])


def _content_path(folders: ClusterFolders, blob: Descriptor) -> Path:
    return folders.content / CONTENT_FOLDER / blob_path(blob.digest)


def _import(
    folders: ClusterFolders,
    layout: Path,
    manifest: Descriptor,
    blobs: Sequence[Descriptor],
    names: Sequence[str],
) -> None:
    index = {
        "schemaVersion": 2,
        "manifests": [manifest.render({IMAGE_NAME_ANNOTATION: name}) for name in names],
    }
    with subprocess.Popen(
        ctr_command(folders, "images", "import", "-"),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        # When ctr ends early its message says why, not the broken pipe.
        with (
            contextlib.suppress(BrokenPipeError),
            process.stdin,
            tarfile.open(fileobj=process.stdin, mode="w|", bufsize=COPY_BUFFER_BYTES) as archive,
        ):
            add_bytes(archive, "oci-layout", LAYOUT)
            add_bytes(archive, "index.json", json.dumps(index).encode())
            for blob in blobs:
                entry = tarfile.TarInfo(blob_path(blob.digest))
                entry.size = blob.size
                with (layout / blob_path(blob.digest)).open("rb") as content:
                    archive.addfile(entry, content)
        try:
            process.wait(IMPORT_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise CommandError(f"importing {names[0]} took over {IMPORT_TIMEOUT_SECONDS:.0f} s") from error
        message = process.stderr.read().decode(errors="replace").strip()
    if process.returncode != 0:
        raise CommandError(f"importing {names[0]} failed: {message[-2000:]}")


def _share(path: Path, stored: Path) -> None:
    """Let the layout's blob and containerd's be one file on disk; both are never changed."""
    if not stored.exists() or stored.samefile(path):
        return
    partial = path.with_name(f".{path.name}")
    partial.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # another file system: two copies then
        os.link(stored, partial)
        partial.replace(path)


def _forget_others(layout: Path, *, keep: str, repository: str) -> None:
    """Drop a repository's older images from the layout, and blobs that no image uses any more."""
    index_path = layout / "index.json"
    index = json.loads(index_path.read_text())

    def is_current(entry: dict[str, dict[str, str]]) -> bool:
        tag = entry.get("annotations", {}).get(REFERENCE_ANNOTATION, "")
        return tag == keep or tag.rpartition("-")[0] != repository

    index["manifests"] = [entry for entry in index["manifests"] if is_current(entry)]
    partial = index_path.with_suffix(".partial")
    partial.write_text(json.dumps(index))
    partial.replace(index_path)
    used = {
        blob.digest.partition(":")[2]
        for entry in index["manifests"]
        for blob in blobs_of(layout, Descriptor.parse(entry))
    }
    for path in (layout / "blobs" / "sha256").iterdir():
        if path.name not in used:
            path.unlink()
