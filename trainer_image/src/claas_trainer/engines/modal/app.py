"""The app that is deployed to Modal: `modal deploy -m claas_trainer.engines.modal.app`, from a checkout.

Its settings are CLAAS_MODAL_* variables of the deploying shell (`deployment`). Containers import this module too, and
read the same settings from the image.
"""

from __future__ import annotations

import os
from pathlib import Path

import modal

from claas_trainer.compute_environment import COMPUTE_ENVIRONMENT
from claas_trainer.engines.modal.deployment import TrainerDeployment

VERSIONS_MOUNT = "/claas/adapters"
WEIGHTS_MOUNT = "/claas/weights"
SOURCES = ("claas_contract", "claas_crds", "claas_modal_client", "claas_trainer")
"""The packages of this project that the image has."""
_PYTHON = "3.11"
_UV = "0.13.9"
_ENVIRONMENT = {
    "PYTHONUNBUFFERED": "1",
    # Asking CUDA itself whether there is a GPU would spoil it for the process that is restored from the snapshot.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    **COMPUTE_ENVIRONMENT,
}


def _requirements() -> str:
    """The trainer's lock with versions and hashes, in the checkout; read only when the image is built."""
    return os.path.normpath(Path(__file__).parent.joinpath(*[".."] * 5, "requirements", "trainer.txt"))


deployment = TrainerDeployment.of(os.environ)
app = modal.App(deployment.common.app, include_source=False)
versions = modal.Volume.from_name(deployment.common.volume, create_if_missing=True, version=2)
weights = modal.Volume.from_name(deployment.common.weights_volume, create_if_missing=True, version=2)
image = (
    modal.Image.debian_slim(python_version=_PYTHON)
    .uv_pip_install(requirements=[_requirements()], extra_options="--no-deps --require-hashes", uv_version=_UV)
    .env({**_ENVIRONMENT, **deployment.environment()})
    .add_local_python_source(*SOURCES)
)


@app.cls(
    image=image,
    gpu=list(deployment.common.gpu) or None,
    region=list(deployment.common.region) or None,
    cpu=deployment.cpu,
    memory=deployment.memory_mib,
    volumes={VERSIONS_MOUNT: versions, WEIGHTS_MOUNT: weights.with_mount_options(read_only=True)},
    env={"HF_HUB_OFFLINE": "1"},
    # Steps on one adapter follow each other, and the one that is asked for again finds what the first one left.
    max_containers=1,
    scaledown_window=deployment.common.idle_seconds,
    timeout=deployment.timeout_seconds,
    startup_timeout=deployment.start_seconds,
    enable_memory_snapshot=True,
)
class Trainer:
    """Takes the steps of adapters on one base model, one at a time."""

    @modal.enter(snap=True)
    def load(self) -> None:
        """Import PyTorch and the step, and read the base model into plain host memory: all that a snapshot keeps."""
        from claas_trainer.heavy_imports import first_import_of

        with first_import_of("claas_trainer.engines.modal.container.step_server"):
            from claas_trainer.engines.modal.container.mounted_volume import MountedVolume
            from claas_trainer.engines.modal.container.step_server import StepServer
        self._task = os.environ.get("MODAL_TASK_ID")
        self._server = StepServer(
            deployment.common,
            MountedVolume(deployment.common.volume, Path(VERSIONS_MOUNT), versions.reload, versions.commit),
            MountedVolume(deployment.common.weights_volume, Path(WEIGHTS_MOUNT), weights.reload, weights.commit),
            retire=modal.experimental.stop_fetching_inputs,
        )
        self._server.load()

    @modal.enter(snap=False)
    def resume(self) -> None:
        """Begin to serve. A process that was restored from a snapshot is another task."""
        self._server.resume(restored=os.environ.get("MODAL_TASK_ID") != self._task)

    @modal.method()
    def step(self, request: dict[str, object]) -> dict[str, object]:
        """A `StepRequest` as a document, and a `StepAnswer` back."""
        return self._server.step(request)


@app.function(
    image=image,
    volumes={WEIGHTS_MOUNT: weights},
    secrets=[modal.Secret.from_name(deployment.hub_secret)] if deployment.hub_secret else [],
    cpu=2.0,
    memory=4096,
    timeout=86400,
    max_containers=1,
)
def fill_weights(repository: str = deployment.common.model, revision: str = "main") -> dict[str, object]:
    """Download a base model to the Volume of base weights, all of it or nothing. Raises RuntimeError."""
    from claas_trainer.engines.modal.container.hub_download import fill
    from claas_trainer.engines.modal.container.mounted_volume import MountedVolume

    volume = MountedVolume(deployment.common.weights_volume, Path(WEIGHTS_MOUNT), weights.reload, weights.commit)
    return fill(volume, repository, revision)
