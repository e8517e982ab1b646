"""A namespace with a real vLLM that serves the tiny model, volumes, the companion and its token."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.builders.resources import (
    ADAPTER_CLAIM,
    BASE_NAME,
    CONTROL_SECRET,
    DEPLOYMENT,
    MODEL_CLAIM,
    MODEL_PATH,
    Manifest,
)
from tests.cluster import vllm
from tests.cluster.host import volumes
from tests.cluster.images.specs import VLLM
from tests.cluster.layout import full_cluster_folders
from tests.stack.install import Stack

COMPANION_CONFIG_MAP = "claas-vllm-companion"
TOKEN_FOLDER = "/var/run/claas"
GATEWAY_KEYS_SECRET = "claas-gateway-keys"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


@dataclass(frozen=True)
class Serving:
    """What a namespace holds. `volume` is the adapter volume as a folder of this machine, `gateway_key` an API key of
    its tenant."""

    namespace: str
    token: str
    volume: Path
    gateway_key: str = ""


def companion() -> vllm.Companion:
    """The companion, as docs/vllm.md tells users to mount it."""
    return vllm.Companion(
        config_map=COMPANION_CONFIG_MAP,
        arguments=("--middleware=claas_vllm.Companion",),
        environment={
            "CLAAS_TOKEN_FILE": f"{TOKEN_FOLDER}/token",
            "CLAAS_ALIAS_DIR": f"{vllm.ADAPTER_MOUNT}/.claas/aliases",
        },
        secrets=(vllm.SecretMount(CONTROL_SECRET, TOKEN_FOLDER),),
    )


def server(
    stack: Stack, namespace: str, *, with_companion: bool = True, arguments: Sequence[str] = (), replicas: int = 1
) -> vllm.VllmServer:
    """The vLLM server of a namespace."""
    return vllm.VllmServer(
        name=DEPLOYMENT,
        namespace=namespace,
        model_claim=MODEL_CLAIM,
        model_path=MODEL_PATH,
        served_name=BASE_NAME,
        adapter_claim=ADAPTER_CLAIM,
        companion=companion() if with_companion else None,
        arguments=arguments,
        replicas=replicas,
        image=stack.image(VLLM),
    )


def volume_folder(namespace: str) -> Path:
    """The adapter volume of a namespace as a folder of this machine."""
    return full_cluster_folders().volumes / f"{namespace}-adapters"


def create(
    stack: Stack,
    namespace: str,
    *,
    with_companion: bool = True,
    limit_mebibytes: int | None = None,
    serve: bool = True,
    model_path: str = MODEL_PATH,
) -> Serving:
    """Make the namespace, its volumes and Secrets, and the vLLM Deployment (which starts in its own time).

    With `limit_mebibytes` the adapter volume is really full at that size; `model_path` is the model's folder on its
    volume.
    """
    folders = full_cluster_folders()
    model = volumes.make_folder(folders, f"{namespace}-model")
    shutil.copytree(stack.model_folder, model / model_path, dirs_exist_ok=True)
    name = f"{namespace}-adapters"
    adapters = (
        volumes.make_folder(folders, name)
        if limit_mebibytes is None
        else volumes.make_limited_folder(folders, name, size_mebibytes=limit_mebibytes)
    )
    token, key = secrets.token_hex(16), secrets.token_hex(24)
    manifests: list[Manifest] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": RESTRICTED}},
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": CONTROL_SECRET, "namespace": namespace},
            "stringData": {"token": token},
        },
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": GATEWAY_KEYS_SECRET, "namespace": namespace},
            "stringData": {"application": key},
        },
    ]
    for claim, folder in ((MODEL_CLAIM, model), (ADAPTER_CLAIM, adapters)):
        volume = f"{namespace}-{claim}"
        manifests.append(volumes.persistent_volume(volume, folder, claim=(namespace, claim)))
        manifests.append(volumes.persistent_volume_claim(claim, namespace, volume=volume))
    if serve:
        manifests.extend(vllm.manifests(server(stack, namespace, with_companion=with_companion)))
    stack.kubectl.apply(manifests)
    return Serving(namespace, token, adapters, key)


def remove(stack: Stack, serving: Serving) -> None:
    """Delete the namespace, its volumes and what lies on them."""
    namespace = serving.namespace
    stack.kubectl("delete", "namespace", namespace, "--ignore-not-found", "--wait=true", timeout_seconds=180)
    names = [f"{namespace}-{claim}" for claim in (MODEL_CLAIM, ADAPTER_CLAIM)]
    stack.kubectl("delete", "persistentvolume", *names, "--ignore-not-found")
    for folder in (serving.volume, serving.volume.with_name(f"{namespace}-model")):
        volumes.remove_folder(folder)
        shutil.rmtree(folder, ignore_errors=True)
