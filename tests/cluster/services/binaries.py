"""The Kubernetes, etcd, Helm and promtool binaries: found where the machine has them, else built once into the cache.

Each Go module in `binaries/` pins what is built. A build is named by the hash of the module's files and the
build flags, so that a change of any of them builds anew beside the old.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from tests.cluster.errors import BuildError, CommandError, PrerequisiteError
from tests.cluster.host.process import run
from tests.cluster.paths import BINARY_MODULES, binary_root

BUILD_TIMEOUT_SECONDS = 1800.0
MINIMUM_KUBECTL = (1, 30)


class Binary(Enum):
    """A program of the test cluster; the value is its file name."""

    ETCD = "etcd"
    API_SERVER = "kube-apiserver"
    CONTROLLER_MANAGER = "kube-controller-manager"
    SCHEDULER = "kube-scheduler"
    KUBELET = "kubelet"
    PROXY = "kube-proxy"
    KUBECTL = "kubectl"
    HELM = "helm"
    PAUSE = "pause"
    PROMTOOL = "promtool"


@dataclass(frozen=True)
class Recipe:
    """How one binary is built: a folder of `binaries/` and the package in it."""

    module: str
    package: str


RECIPES: dict[Binary, Recipe] = {
    Binary.ETCD: Recipe("etcd", "go.etcd.io/etcd/server/v3"),
    Binary.HELM: Recipe("helm", "helm.sh/helm/v4/cmd/helm"),
    Binary.PAUSE: Recipe("pause", "."),
    Binary.PROMTOOL: Recipe("promtool", "github.com/prometheus/prometheus/cmd/promtool"),
    **{
        binary: Recipe("kubernetes", f"k8s.io/kubernetes/cmd/{binary.value}")
        for binary in Binary
        if binary not in (Binary.ETCD, Binary.HELM, Binary.PAUSE, Binary.PROMTOOL)
    },
}
LIGHT_BINARIES = (Binary.ETCD, Binary.API_SERVER)


def required_version(go_mod: str, module: str) -> str:
    """The version that a go.mod's text requires of a module."""
    match = re.search(rf"^(?:require)?\s+{re.escape(module)}\s+(v\S+)", go_mod, re.MULTILINE)
    if match is None:
        raise BuildError(f"go.mod requires no version of {module}")
    return match.group(1)


def build_flags(module: str) -> tuple[str, ...]:
    """Flags of `go build` for a module. Without the version flag a Kubernetes server reports v0.0.0."""
    link_flags = "-s -w"
    if module == "kubernetes":
        version = required_version((BINARY_MODULES / module / "go.mod").read_text(), "k8s.io/kubernetes")
        link_flags += f" -X k8s.io/component-base/version.gitVersion={version}"
    # promtool's queries of clouds are left out: they are most of its modules.
    tags = ("-tags", "remove_all_sd") if module == "promtool" else ()
    return ("-trimpath", "-buildvcs=false", "-ldflags", link_flags, *tags)


def build_folder(module: str) -> Path:
    """Where a module's binaries lie, named by everything that decides what they are."""
    digest = hashlib.sha256()
    for name in ("go.mod", "go.sum"):
        digest.update((BINARY_MODULES / module / name).read_bytes())
    digest.update("\0".join(build_flags(module)).encode())
    return binary_root() / f"{module}-{digest.hexdigest()[:12]}"


def find(binary: Binary, *, honour_assets: bool = False) -> Path | None:
    """A binary that is there already, or None.

    `KUBEBUILDER_ASSETS` is looked at first where `honour_assets` says so; the machine's own kubectl serves
    when it is recent enough; then comes the cache.
    """
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if honour_assets and assets and os.access(Path(assets) / binary.value, os.X_OK):
        return Path(assets) / binary.value
    if binary is Binary.KUBECTL and (own := _own_kubectl()) is not None:
        return own
    path = build_folder(RECIPES[binary].module) / binary.value
    return path if os.access(path, os.X_OK) else None


def _own_kubectl() -> Path | None:
    found = shutil.which("kubectl")
    if found is None:
        return None
    try:
        client = json.loads(run([found, "version", "--client", "-o", "json"], timeout_seconds=20))
        version = client["clientVersion"]["gitVersion"]
    except (CommandError, json.JSONDecodeError, KeyError):
        return None
    match = re.match(r"v(\d+)\.(\d+)", version)
    recent = match is not None and (int(match.group(1)), int(match.group(2))) >= MINIMUM_KUBECTL
    return Path(found) if recent else None


def ensure(binaries: Iterable[Binary], *, honour_assets: bool = False) -> dict[Binary, Path]:
    """Paths of the binaries, building those that are missing.

    Raises `PrerequisiteError` when Go is missing and something must be built, `BuildError` when a build
    fails.
    """
    wanted = tuple(binaries)
    found = {binary: find(binary, honour_assets=honour_assets) for binary in wanted}
    if any(path is None for path in found.values()):
        with _build_lock():
            for binary in wanted:
                # Another process may have built it while this one waited for the lock.
                found[binary] = find(binary, honour_assets=honour_assets) or _build(binary)
    return {binary: path for binary, path in found.items() if path is not None}


@contextlib.contextmanager
def _build_lock() -> Iterator[None]:
    binary_root().mkdir(parents=True, exist_ok=True)
    with (binary_root() / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(binary: Binary) -> Path:
    go = shutil.which("go")
    if go is None:
        raise PrerequisiteError(
            f"{binary.value} is not built yet and Go is not installed: install Go 1.26 or newer, "
            "or set KUBEBUILDER_ASSETS to a folder with kube-apiserver, etcd and kubectl (light mode), "
            "or use a cluster that you have with CLUSTER=current"
        )
    recipe = RECIPES[binary]
    folder = build_folder(recipe.module)
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{binary.value}.partial"
    source = BINARY_MODULES / recipe.module
    command: list[str | Path] = [
        go,
        "-C",
        source,
        "build",
        *build_flags(recipe.module),
        "-o",
        partial,
        recipe.package,
    ]
    try:
        run(
            command,
            timeout_seconds=BUILD_TIMEOUT_SECONDS,
            environment={"CGO_ENABLED": "0"},
        )
    except CommandError as error:
        partial.unlink(missing_ok=True)
        raise BuildError(f"{binary.value} could not be built: {error}") from error
    return partial.rename(folder / binary.value)
