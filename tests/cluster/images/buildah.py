"""buildah without a daemon, a registry or a configuration of the machine's: its storage lies in the cache."""

import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.errors import BuildError, CommandError
from tests.cluster.host.process import run
from tests.cluster.paths import image_root

BUILD_TIMEOUT_SECONDS = 1800.0
PUSH_TIMEOUT_SECONDS = 900.0
STALE_SECONDS = 2 * BUILD_TIMEOUT_SECONDS
HOST_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
BUILD_AUTHORITIES = "/run/build-certificates.crt"
BUILD_UV_CACHE = "/uv-cache"
PASSED_ON = ("PIP_INDEX_URL", "UV_DEFAULT_INDEX")


@dataclass(frozen=True)
class Build:
    """One `buildah build`: its Containerfile and context, an optional target stage, the names to give it.

    `arguments` are build arguments, `NAME=value`.
    """

    containerfile: Path
    context: Path
    base_image: str
    tags: tuple[str, ...]
    target: str | None = None
    arguments: tuple[str, ...] = ()


def storage_root() -> Path:
    """Where buildah keeps layers."""
    return image_root() / "storage"


def _environment() -> dict[str, str]:
    temporary = image_root() / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    return {"BUILDAH_ISOLATION": "chroot", "TMPDIR": str(temporary)}


def remove_stale_temporaries() -> None:
    """Remove what builds and pushes that were killed left behind: up to the size of a layer each."""
    for path in (image_root() / "tmp").glob("*"):
        if time.time() - path.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _policy() -> Path:
    """A signature policy of our own: the images are made here, and the machine may have no policy file."""
    path = image_root() / "policy.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
    return path


def _command(*arguments: str | Path) -> list[str | Path]:
    return [
        "buildah",
        "--storage-driver=overlay",
        "--root",
        storage_root(),
        "--runroot",
        image_root() / "runroot",
        *arguments,
    ]


def buildah(*arguments: str | Path, timeout_seconds: float = 120.0) -> str:
    """Run buildah and return what it prints."""
    return run(_command(*arguments), timeout_seconds=timeout_seconds, environment=_environment())


def names() -> set[str]:
    """Names of all images in the storage."""
    listed = json.loads(buildah("images", "--json") or "[]") or []
    return {name for image in listed for name in image.get("names") or ()}


def network_arguments(environment: Mapping[str, str]) -> list[str]:
    """What the build needs to reach package indexes as this machine does: its certificate authorities and
    index settings, and its uv cache. All of it is there during the build only."""
    uv_cache = Path(environment.get("UV_CACHE_DIR") or Path.home() / ".cache" / "uv")
    uv_cache.mkdir(parents=True, exist_ok=True)
    arguments = ["--volume", f"{uv_cache}:{BUILD_UV_CACHE}:rw", "--build-arg", f"UV_CACHE_DIR={BUILD_UV_CACHE}"]
    authorities = Path(environment.get("SSL_CERT_FILE") or HOST_AUTHORITIES)
    if authorities.is_file():
        arguments += ["--volume", f"{authorities}:{BUILD_AUTHORITIES}:ro"]
        for name in ("SSL_CERT_FILE", "PIP_CERT"):
            arguments += ["--build-arg", f"{name}={BUILD_AUTHORITIES}"]
    for name in PASSED_ON:
        if name in environment:
            arguments += ["--build-arg", f"{name}={environment[name]}"]
    return arguments


def build(request: Build) -> None:
    """Build an image, reusing layers. Raises `BuildError` with the end of the build's output."""
    target = ["--target", request.target] if request.target else []
    arguments = [part for argument in request.arguments for part in ("--build-arg", argument)]
    tags = [argument for tag in request.tags for argument in ("--tag", tag)]
    try:
        buildah(
            "build",
            "--layers",
            "--pull=never",
            "--signature-policy",
            _policy(),
            "--build-arg",
            f"BASE_IMAGE={request.base_image}",
            *network_arguments(os.environ),
            *arguments,
            *target,
            *tags,
            "--file",
            request.containerfile,
            request.context,
            timeout_seconds=BUILD_TIMEOUT_SECONDS,
        )
    except CommandError as error:
        raise BuildError(f"{request.tags[0]} could not be built: {error}") from error


def push_to_layout(image: str, layout: Path, tag: str) -> None:
    """Write an image into an OCI layout, uncompressed; blobs that are there already are not written again.

    skopeo does it, since `buildah push` compresses whatever goes into a layout, which takes minutes.
    """
    layout.parent.mkdir(parents=True, exist_ok=True)
    storage = f"[overlay@{storage_root()}+{image_root() / 'runroot'}]"
    options = ("--quiet", "--format=oci", "--dest-oci-accept-uncompressed-layers")
    run(
        [
            "skopeo",
            "--policy",
            _policy(),
            "copy",
            *options,
            f"containers-storage:{storage}{image}",
            f"oci:{layout}:{tag}",
        ],
        timeout_seconds=PUSH_TIMEOUT_SECONDS,
        environment=_environment(),
    )


def import_root_file_system(archive: Path, image: str) -> None:
    """Make an image of one layer from a tar archive of a root file system."""
    container = buildah("from", "--signature-policy", _policy(), "scratch").strip()
    try:
        buildah("add", "--quiet", container, archive, "/", timeout_seconds=BUILD_TIMEOUT_SECONDS)
        buildah(
            "commit",
            "--quiet",
            "--signature-policy",
            _policy(),
            container,
            image,
            timeout_seconds=BUILD_TIMEOUT_SECONDS,
        )
    finally:
        buildah("rm", container)
