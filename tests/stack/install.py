"""Cluster, images, and the operator installed by Helm."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import cluster
from tests.cluster.cluster import Cluster, Report, silent
from tests.cluster.errors import PrerequisiteError
from tests.cluster.host import volumes
from tests.cluster.host.process import run
from tests.cluster.images import building as images
from tests.cluster.images.specs import GATEWAY, OPERATOR, REMOTE, TRAINER, ImageSpec
from tests.cluster.kubectl import Kubectl
from tests.cluster.layout import full_cluster_folders
from tests.cluster.paths import REPOSITORY_ROOT
from tests.cluster.services.binaries import Binary, ensure
from tests.tiny_model.build import build, default_folder

RELEASE = "claas"
SYSTEM_NAMESPACE = "claas-system"
OPERATOR_DEPLOYMENT = "claas-operator"
GATEWAY_DEPLOYMENT = "claas-operator-gateway"
CHART = REPOSITORY_ROOT / "helm" / "claas-operator"


@dataclass(frozen=True)
class Stack:
    """A cluster with the operator in it. `images` are the names that pods ask for, by repository."""

    cluster: Cluster
    kubectl: Kubectl
    model_folder: Path
    images: dict[str, str]

    def image(self, spec: ImageSpec) -> str:
        """The name of an image in the cluster."""
        return self.images.get(spec.repository, spec.development_name)


def timed(report: Report, what: str, do: Callable[[], object]) -> None:
    """Do something and say how long it took."""
    began = time.monotonic()
    do()
    report(f"{what}: {time.monotonic() - began:.1f} s")


def bring_up(report: Report = silent) -> Stack:
    """Bring up cluster, images and tiny model side by side, then install operator and gateway.

    Raises `PrerequisiteError` for a cluster of the user's: its volumes are not folders of this machine.
    """
    if cluster.uses_current_context():
        raise PrerequisiteError(
            "CLUSTER=current: the demo and the end-to-end tests put their model on volumes of their own node: they "
            "need their own cluster; unset CLUSTER (the chart installs on yours: see README.md)"
        )
    with ThreadPoolExecutor(1) as pool:
        model = pool.submit(_model, report)
        running = images.up_with_images(report)
        folder = model.result()
    built = images.build_and_load()
    names = {each.spec.repository: each.name for each in built if each.spec.is_loaded}
    stack = Stack(running, running.kubectl(), folder, names)
    timed(report, "operator and gateway installed by Helm", lambda: install_release(stack))
    return stack


def _model(report: Report) -> Path:
    folder = default_folder(0)
    timed(report, "tiny model", lambda: build(folder, 0))
    return folder


def helm(stack: Stack, *arguments: str, timeout_seconds: float = 180.0) -> str:
    """Run the real Helm against the cluster."""
    program = ensure([Binary.HELM])[Binary.HELM]
    return run([program, "--kubeconfig", stack.cluster.kubeconfig, *arguments], timeout_seconds=timeout_seconds)


def install_release(stack: Stack, *settings: str) -> None:
    """Install or upgrade the release and wait until operator and gateway are ready."""
    _volume_of_the_gateway(stack)
    # A tag may be all digits, and is text all the same.
    texts = [
        *_image_values("image", stack.image(OPERATOR)),
        *_image_values("trainer.image", stack.image(TRAINER)),
        *_image_name("remote.image", stack.image(REMOTE)),
        *_image_values("gateway.image", stack.image(GATEWAY)),
        f"fullnameOverride={OPERATOR_DEPLOYMENT}",
        "gateway.keys=required",
    ]
    sets = [part for text in texts for part in ("--set-string", text)]
    sets += ["--set", "gateway.enabled=true"]
    sets += [part for value in settings for part in ("--set", value)]
    helm(
        stack, "upgrade", "--install", RELEASE, str(CHART), "--namespace", SYSTEM_NAMESPACE,
        "--create-namespace", "--wait", "--timeout", "120s", *sets,
    )  # fmt: skip


def _volume_of_the_gateway(stack: Stack) -> None:
    folder = volumes.make_folder(full_cluster_folders(), GATEWAY_DEPLOYMENT)
    claim = (SYSTEM_NAMESPACE, GATEWAY_DEPLOYMENT)
    stack.kubectl.apply(
        [volumes.persistent_volume(GATEWAY_DEPLOYMENT, folder, access_mode="ReadWriteOnce", claim=claim)]
    )


def _image_values(prefix: str, name: str) -> list[str]:
    return [*_image_name(prefix, name), f"{prefix}.pullPolicy=IfNotPresent"]


def _image_name(prefix: str, name: str) -> list[str]:
    repository, _, tag = name.rpartition(":")
    return [f"{prefix}.repository={repository}", f"{prefix}.tag={tag}"]
