"""The images of this repository: what each is built from, and the names that its content gives it."""

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.images.base_image import Suite
from tests.cluster.paths import REPOSITORY_ROOT, image_root

LOCAL_PREFIX = "localhost/"
# What a container runtime takes an image name without a registry to mean.
IMPLIED_PREFIX = "docker.io/library/"
DEVELOPMENT_TAG = "dev"
HASH_LENGTH = 12
# Equal content must give equal layers, whenever it was checked out.
STAGED_TIME = 1_700_000_000


@dataclass(frozen=True)
class ImageSpec:
    """An image: its repository name, its Containerfile, and the files and folders that it is built from.

    `target` builds one stage only, `arguments` are build arguments, `NAME=value`; `is_loaded` says whether pods run
    it. It begins with the image `parent` or, without one, with a base image of `suite`.
    """

    repository: str
    containerfile: str
    sources: tuple[str, ...]
    target: str | None = None
    arguments: tuple[str, ...] = ()
    is_loaded: bool = True
    parent: "ImageSpec | None" = None
    suite: Suite = Suite.BOOKWORM

    @property
    def development_name(self) -> str:
        """The name that always means the newest build."""
        return f"{LOCAL_PREFIX}{self.repository}:{DEVELOPMENT_TAG}"


OPERATOR = ImageSpec(
    "claas-operator",
    "operator/Containerfile",
    (
        "requirements/operator.txt",
        "crds/src",
        "contract/src",
        "kube/src",
        "vllm_client/src",
        "bounded/src",
        "modal_client/src",
        "operator/src",
        "vllm_companion/src",
    ),
)
GATEWAY = ImageSpec(
    "claas-gateway",
    "gateway/Containerfile",
    ("requirements/gateway.txt", "crds/src", "kube/src", "gateway/src"),
)
# Steps on the test cluster run on CPUs: no compiler, and so no Debian mirror, is needed.
_TRAINER_ARGUMENTS = ("SYSTEM_PACKAGES=",)
TRAINER_DEPENDENCIES = ImageSpec(
    "claas-trainer-dependencies",
    "trainer_image/Containerfile",
    ("requirements/trainer.txt",),
    target="dependencies",
    arguments=_TRAINER_ARGUMENTS,
    is_loaded=False,
)
TRAINER = ImageSpec(
    "claas-trainer",
    "trainer_image/Containerfile",
    ("requirements/trainer.txt", "crds/src", "contract/src", "vllm_client/src", "trainer_image/src"),
    arguments=_TRAINER_ARGUMENTS,
)
VLLM = ImageSpec(
    "claas-vllm", "tests/cluster/vllm.Containerfile", ("requirements/vllm.txt",), parent=TRAINER_DEPENDENCIES
)
# PyTorch's own index is not asked: Debian has a PyTorch for the CPU.
_REMOTE_REQUIREMENTS = ("requirements/remote.txt", "requirements/overrides.txt")
_REMOTE_ARGUMENTS = ("TORCH_FROM=debian",)
REMOTE_DEPENDENCIES = ImageSpec(
    "claas-trainer-remote-dependencies",
    "trainer_image/Containerfile",
    _REMOTE_REQUIREMENTS,
    target="remote-dependencies",
    arguments=_REMOTE_ARGUMENTS,
    is_loaded=False,
    suite=Suite.TRIXIE,
)
REMOTE = ImageSpec(
    "claas-trainer-remote",
    "trainer_image/Containerfile",
    (
        *_REMOTE_REQUIREMENTS,
        "crds/src",
        "contract/src",
        "vllm_client/src",
        "bounded/src",
        "tinker_client/src",
        "modal_client/src",
        "vllm_companion/src",
        "trainer_image/src",
        "inference_proxy/src",
    ),
    target="remote",
    arguments=_REMOTE_ARGUMENTS,
    suite=Suite.TRIXIE,
)
TINKER_PEER = ImageSpec(
    "claas-tinker-peer",
    "tests/cluster/peer.Containerfile",
    ("requirements/peer.txt", "tests/peers"),
    parent=REMOTE_DEPENDENCIES,
)
MODAL_PEER = ImageSpec(
    "claas-modal-peer",
    "tests/cluster/modal_peer.Containerfile",
    ("requirements/modal.txt", "tests/peers"),
    parent=VLLM,
)
ALL = (TRAINER_DEPENDENCIES, TRAINER, VLLM, OPERATOR, GATEWAY, REMOTE_DEPENDENCIES, REMOTE, TINKER_PEER, MODAL_PEER)
"""In an order in which parents come first."""


def source_files(root: Path, sources: Sequence[str]) -> Iterator[Path]:
    """Files of an image's sources, in a fixed order, without what Python left beside them."""
    for source in sources:
        path = root / source
        for each in [path] if path.is_file() else sorted(path.rglob("*")):
            if each.is_file() and each.suffix != ".pyc":
                yield each


def input_hash(spec: ImageSpec, base_image: str, root: Path = REPOSITORY_ROOT) -> str:
    """A hash of all that decides what the image holds."""
    digest = hashlib.sha256("\0".join([base_image, str(spec.target), *spec.arguments, ""]).encode())
    for path in (root / spec.containerfile, *source_files(root, spec.sources)):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root)}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:HASH_LENGTH]


def stage_context(spec: ImageSpec, root: Path = REPOSITORY_ROOT) -> Path:
    """Copy an image's sources, readable by everyone, into a build context of their own and return it."""
    context = image_root() / "contexts" / spec.repository
    shutil.rmtree(context, ignore_errors=True)
    for source in spec.sources:
        if not (root / source).is_file():
            (context / source).mkdir(parents=True, exist_ok=True)
    for path in source_files(root, spec.sources):
        staged = context / path.relative_to(root)
        staged.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, staged)
        staged.chmod(0o644)
        os.utime(staged, (STAGED_TIME, STAGED_TIME))
    for folder in sorted((each for each in context.rglob("*") if each.is_dir()), reverse=True):
        folder.chmod(0o755)
        os.utime(folder, (STAGED_TIME, STAGED_TIME))
    return context
