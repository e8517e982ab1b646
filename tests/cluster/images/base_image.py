"""The base images: Debian with Python, made by debootstrap once, where no registry is at hand."""

import hashlib
import os
import shutil
import tempfile
from enum import StrEnum
from pathlib import Path

from tests.cluster.errors import BuildError, CommandError
from tests.cluster.host.process import run
from tests.cluster.images import buildah
from tests.cluster.paths import image_root


class Suite(StrEnum):
    """A release of Debian."""

    BOOKWORM = "bookworm"
    TRIXIE = "trixie"
    """Debian 13, whose python3-torch the slim image takes."""


# Where a registry has them: images to use instead.
OVERRIDES = {Suite.BOOKWORM: "CLAAS_BASE_IMAGE", Suite.TRIXIE: "CLAAS_DEBIAN13_IMAGE"}
PACKAGES = ("python3", "python3-venv", "ca-certificates")
# What no container needs: package archives and indexes, manuals, translations.
DISCARDED = (
    "var/cache/apt",
    "var/lib/apt/lists",
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
)
DEBOOTSTRAP_TIMEOUT_SECONDS = 900.0
TAR_TIMEOUT_SECONDS = 300.0


def base_image_name(suite: Suite) -> str:
    """The base image's name: that of the override where a registry has one, else named by its recipe."""
    override = os.environ.get(OVERRIDES[suite])
    if override:
        return override
    recipe = "\0".join((suite, *PACKAGES, *DISCARDED))
    return f"localhost/claas-base:{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


def ensure_base_image(suite: Suite) -> str:
    """Make the base image unless it is there, and return its name. Raises `BuildError`."""
    name = base_image_name(suite)
    if os.environ.get(OVERRIDES[suite]):
        buildah.buildah("pull", "--quiet", name, timeout_seconds=DEBOOTSTRAP_TIMEOUT_SECONDS)
        return name
    if name in buildah.names():
        return name
    image_root().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=image_root(), prefix="base-") as folder:
        root, archive = Path(folder) / "root", Path(folder) / "root.tar"
        try:
            run(
                ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", suite, root],
                timeout_seconds=DEBOOTSTRAP_TIMEOUT_SECONDS,
            )
        except CommandError as error:
            raise BuildError(
                f"the base image could not be made: {error}. debootstrap needs a Debian mirror; where a "
                f"registry is at hand, set {OVERRIDES[suite]} to an image of Debian {suite} with Python and its venv"
            ) from error
        for part in DISCARDED:
            shutil.rmtree(root / part, ignore_errors=True)
        run(["tar", "--numeric-owner", "-C", root, "-cf", archive, "."], timeout_seconds=TAR_TIMEOUT_SECONDS)
        buildah.import_root_file_system(archive, name)
    return name
