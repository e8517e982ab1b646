"""The app: `modal deploy -m claas_modal_vllm.app`, with the settings of `deployment` in the environment."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import modal

from claas_modal_vllm.command import sleeps
from claas_modal_vllm.deployment import CONTROL_TOKEN, PORT, WEIGHTS_MOUNT, ServerDeployment
from claas_modal_vllm.image import server_image

if TYPE_CHECKING:
    from claas_modal_vllm.container import VllmContainer

DEPLOYMENT = ServerDeployment.of(os.environ)
_COMMON = DEPLOYMENT.common

app = modal.App(_COMMON.app)
weights = modal.Volume.from_name(_COMMON.weights_volume, create_if_missing=True, version=2)


def _before_snapshot(method: Callable[[Any], Any]) -> Any:
    """`enter(snap=True)`, which Modal refuses where no snapshot is made."""
    return modal.enter(snap=True)(method) if DEPLOYMENT.snapshot else method


@app.server(
    image=server_image(DEPLOYMENT),
    secrets=[modal.Secret.from_name(DEPLOYMENT.control_secret, required_keys=[CONTROL_TOKEN])],
    volumes={WEIGHTS_MOUNT: weights.with_mount_options(read_only=True)},
    gpu=list(_COMMON.gpu) or None,
    cpu=DEPLOYMENT.cpu,
    memory=DEPLOYMENT.memory_mib,
    compute_region=list(_COMMON.region) or None,
    routing_region=DEPLOYMENT.routing_region,
    min_containers=DEPLOYMENT.min_containers,
    max_containers=DEPLOYMENT.max_containers,
    target_concurrency=DEPLOYMENT.target_concurrency,
    scaledown_window=_COMMON.idle_seconds,
    startup_timeout=DEPLOYMENT.start_seconds,
    exit_grace_period=DEPLOYMENT.grace_seconds,
    port=PORT,
    unauthenticated=False,
    include_source=False,
    enable_memory_snapshot=DEPLOYMENT.snapshot,
    experimental_options={"enable_gpu_snapshot": True} if sleeps(DEPLOYMENT) else None,
)
class Vllm:
    """vLLM with the versions that the pointers name. Modal sends it requests when all hooks have returned."""

    @_before_snapshot
    async def prepare(self) -> None:
        """On a GPU the snapshot has vLLM, asleep and without adapters. On a CPU it has this module alone."""
        if sleeps(DEPLOYMENT):
            self.container = _container()
            await self.container.launch()
            await self.container.doze()

    @modal.enter(snap=False)
    async def begin(self) -> None:
        """Start vLLM, or wake the one of the snapshot, and put the versions into service."""
        if sleeps(DEPLOYMENT):
            await self.container.wake()
        else:
            self.container = _container()
            await self.container.launch()
        await self.container.follow()

    @modal.exit()
    async def end(self) -> None:
        """Let vLLM finish."""
        await self.container.stop()


def _container() -> VllmContainer:
    # Here, so that `modal deploy` needs nothing but Modal's client.
    from claas_modal_client.connection import ModalConnection
    from claas_modal_vllm.container import VllmContainer

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("claas_modal_vllm").setLevel(logging.INFO)
    return VllmContainer(DEPLOYMENT, Path(tempfile.gettempdir()) / "claas", ModalConnection.container())
