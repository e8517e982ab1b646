"""Building this repository's images and loading them into the cluster; unchanged ones cost nothing."""

import fcntl
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.cluster import Cluster, Report, exclusive, silent, status, up, uses_current_context
from tests.cluster.errors import CommandError, PrerequisiteError
from tests.cluster.host import machine as host
from tests.cluster.images import buildah
from tests.cluster.images.base_image import Suite, ensure_base_image
from tests.cluster.images.loading import load, loaded_names
from tests.cluster.images.specs import (
    ALL,
    DEVELOPMENT_TAG,
    GATEWAY,
    IMPLIED_PREFIX,
    LOCAL_PREFIX,
    OPERATOR,
    REMOTE,
    TRAINER,
    ImageSpec,
    input_hash,
    stage_context,
)
from tests.cluster.layout import ClusterFolders, full_cluster_folders
from tests.cluster.paths import REPOSITORY_ROOT, image_root
from tests.cluster.services.runtime import IMPORT_TIMEOUT_SECONDS, ctr


@dataclass(frozen=True)
class BuiltImage:
    """An image in buildah's storage; `name` carries the hash of its inputs."""

    spec: ImageSpec
    name: str

    @property
    def names_in_cluster(self) -> tuple[str, ...]:
        """Names under which pods may ask for it."""
        return (
            self.name,
            self.spec.development_name,
            f"{IMPLIED_PREFIX}{self.spec.repository}:{DEVELOPMENT_TAG}",
        )


def build_image(spec: ImageSpec, base_image: str, existing: set[str]) -> BuiltImage:
    """Build one image, unless its inputs are as they were."""
    tag = input_hash(spec, base_image)
    name = f"{LOCAL_PREFIX}{spec.repository}:{tag}"
    if name not in existing:
        buildah.build(
            buildah.Build(
                containerfile=REPOSITORY_ROOT / spec.containerfile,
                context=stage_context(spec),
                base_image=base_image,
                tags=(name,),
                target=spec.target,
                arguments=spec.arguments,
            )
        )
    buildah.buildah("tag", name, spec.development_name)
    for other in existing:
        if other.startswith(f"{LOCAL_PREFIX}{spec.repository}:") and other not in (name, spec.development_name):
            buildah.buildah("rmi", other)  # only the name, where the image has others or is a parent
    return BuiltImage(spec, name)


def build_images(report: Report = silent, built: Callable[[BuiltImage], None] = lambda _: None) -> list[BuiltImage]:
    """Build every image in turn; `built` hears of each as soon as it is there.

    Raises `PrerequisiteError` when buildah or debootstrap is missing, `BuildError` when a build fails.
    """
    host.require_root()
    host.ensure_tools(host.IMAGE_TOOLS)
    image_root().mkdir(parents=True, exist_ok=True)
    with (image_root() / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        buildah.buildah("rm", "--all")  # working containers of a killed build
        buildah.remove_stale_temporaries()
        bases = {suite: ensure_base_image(suite) for suite in Suite}
        existing = buildah.names()
        images: list[BuiltImage] = []
        names: dict[ImageSpec, str] = {}
        for spec in ALL:
            began = time.monotonic()
            image = build_image(spec, names[spec.parent] if spec.parent else bases[spec.suite], existing)
            images.append(image)
            names[spec] = image.name
            report(f"{image.name} built in {time.monotonic() - began:.1f} s")
            if spec.is_loaded:
                built(image)
        return images


def load_built(folders: ClusterFolders, image: BuiltImage, report: Report) -> None:
    """Load one image, unless the cluster has it, and drop the cluster's older builds of it."""
    began = time.monotonic()
    with exclusive(folders):
        present = loaded_names(folders)
        if image.name not in present:
            load(folders, image.name, image.names_in_cluster)
        else:
            for name in image.names_in_cluster[1:]:
                ctr(folders, "images", "tag", "--force", image.name, name)
        prefix = f"{LOCAL_PREFIX}{image.spec.repository}:"
        old = [name for name in present if name.startswith(prefix) and name not in image.names_in_cluster]
        if old:
            ctr(folders, "images", "delete", *old)
    report(f"{image.name} loaded in {time.monotonic() - began:.1f} s")


def build_and_load(report: Report = silent) -> list[BuiltImage]:
    """Build every image and load it while the next is being built."""
    if uses_current_context():
        report(push_advice())
        return []
    folders = full_cluster_folders()
    _require_containerd()
    with ThreadPoolExecutor(1) as pool:
        loads: list[Future[None]] = []
        images = build_images(report, lambda image: loads.append(pool.submit(load_built, folders, image, report)))
        for each in loads:
            each.result()
    return images


def up_with_images(report: Report = silent) -> Cluster:
    """Bring the cluster up while the images are being built, then load them."""
    if uses_current_context():
        report(push_advice())
        return up(report)
    folders = full_cluster_folders()
    with ThreadPoolExecutor(1) as pool:
        building = pool.submit(build_images, report)
        cluster = up(report)
        images = building.result()
    for image in images:
        if image.spec.is_loaded:
            load_built(folders, image, report)
    return cluster


def load_named(names: Sequence[str], report: Report = silent) -> None:
    """Load images by their names in buildah's storage, or from archives (`docker save`, `buildah push`)."""
    if uses_current_context():
        report(push_advice())
        return
    folders = full_cluster_folders()
    _require_containerd()
    with exclusive(folders):
        for name in names:
            if Path(name).is_file():
                ctr(folders, "images", "import", name, timeout_seconds=IMPORT_TIMEOUT_SECONDS)
            else:
                full = name if "/" in name else f"{LOCAL_PREFIX}{name}"
                if full not in buildah.names():
                    raise CommandError(f"no image {full} was built: run `python -m tests.cluster images` first")
                load(folders, full, (full,))
            report(f"{name} loaded")


def push_advice() -> str:
    """What to do for a cluster that is not ours: nothing is loaded there."""
    lines = ["CLUSTER=current: build these and push them to a registry that the cluster can pull from:"]
    for spec in (OPERATOR, GATEWAY, TRAINER, REMOTE):
        target = f" --target {spec.target}" if spec.target else ""
        lines.append(
            f"  docker build -f {spec.containerfile}{target} -t YOUR_REGISTRY/{spec.repository}:{DEVELOPMENT_TAG} ."
        )
        lines.append(f"  docker push YOUR_REGISTRY/{spec.repository}:{DEVELOPMENT_TAG}")
    return "\n".join(lines)


def _require_containerd() -> None:
    if "containerd" not in status().running:
        raise PrerequisiteError("the cluster is not up: run `python -m tests.cluster up` first")
