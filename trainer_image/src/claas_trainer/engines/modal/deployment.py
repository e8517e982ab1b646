"""How the app is deployed: settings from the environment of `modal deploy`, which the image keeps for its containers;
and the names by which the trainer's pod finds what was deployed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from claas_contract.places import MODEL_DIRECTORY
from claas_modal_client.deployment import NAME, NO_GPU, CommonSettings, DeploymentVariables
from claas_modal_client.deployment import DeploymentError as DeploymentError

CLASS_NAME = "Trainer"
"""The deployed class; its method `step` takes a `StepRequest` and returns a `StepAnswer`."""
STEP_METHOD = "step"
FILL_FUNCTION = "fill_weights"
"""The deployed function that downloads a base model from the hub into the Volume of base weights."""


def model_name(base_model: str) -> str:
    """The app's name of a base model, `owner/name`: its repository, or its folder on the mounted claim."""
    return base_model.removeprefix(f"{MODEL_DIRECTORY}/")


@dataclass(frozen=True)
class TrainerDeployment:
    """Settings of a deployment. Another base model is another app."""

    app: str = "claas-trainer"
    """CLAAS_MODAL_APP: name of the app."""
    model: str = "Qwen/Qwen3-8B"
    """CLAAS_MODAL_MODEL: the base model, as `owner/name` on the hub; it lies in a folder of this name on the Volume
    of base weights."""
    gpu: tuple[str, ...] = ("L40S",)
    """CLAAS_MODAL_GPU: one type of GPU, or several by preference, with commas between; empty here, and `none` there,
    for the CPU."""
    region: tuple[str, ...] = ()
    """CLAAS_MODAL_REGION: regions, with commas between; a container may be anywhere when it is empty. Costs more."""
    idle_seconds: int = 45
    """CLAAS_MODAL_IDLE_SECONDS: how long a container waits for the next step, and is paid for."""
    timeout_seconds: int = 3600
    """CLAAS_MODAL_TIMEOUT_SECONDS: after this, Modal ends a step by itself; above `stepTimeoutSeconds` of every
    adapter."""
    start_seconds: int = 1200
    """CLAAS_MODAL_START_SECONDS: longest start of a container, with reading the base weights."""
    cpu: float = 4.0
    """CLAAS_MODAL_CPU: cores."""
    memory_mib: int = 32768
    """CLAAS_MODAL_MEMORY_MIB: host memory, which the base weights must fit into."""
    volume: str = "claas-adapters"
    """CLAAS_MODAL_VOLUME: the Volume with the versions' files."""
    weights_volume: str = "claas-weights"
    """CLAAS_MODAL_WEIGHTS_VOLUME: the Volume with base weights."""
    hub_secret: str = ""
    """CLAAS_MODAL_HUB_SECRET: a Modal Secret with HF_TOKEN, for models that ask for one; none when empty."""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> TrainerDeployment:
        """From the environment. Raises DeploymentError."""
        default = cls()
        variables = DeploymentVariables(environment)
        common = CommonSettings.of(variables, app=default.app, idle_seconds=default.idle_seconds)
        return cls(
            **vars(common),
            timeout_seconds=variables.number("CLAAS_MODAL_TIMEOUT_SECONDS", default.timeout_seconds, 60, 86400),
            start_seconds=variables.number("CLAAS_MODAL_START_SECONDS", default.start_seconds, 60, 86400),
            cpu=variables.cores("CLAAS_MODAL_CPU", default.cpu),
            memory_mib=variables.number("CLAAS_MODAL_MEMORY_MIB", default.memory_mib, 512, 1048576),
            hub_secret=variables.text("CLAAS_MODAL_HUB_SECRET", NAME, default.hub_secret),
        )

    def environment(self) -> dict[str, str]:
        """The environment that says all this again: what the image keeps."""
        return {
            "CLAAS_MODAL_APP": self.app,
            "CLAAS_MODAL_MODEL": self.model,
            "CLAAS_MODAL_GPU": ",".join(self.gpu) or NO_GPU,
            "CLAAS_MODAL_REGION": ",".join(self.region),
            "CLAAS_MODAL_IDLE_SECONDS": str(self.idle_seconds),
            "CLAAS_MODAL_TIMEOUT_SECONDS": str(self.timeout_seconds),
            "CLAAS_MODAL_START_SECONDS": str(self.start_seconds),
            "CLAAS_MODAL_CPU": str(self.cpu),
            "CLAAS_MODAL_MEMORY_MIB": str(self.memory_mib),
            "CLAAS_MODAL_VOLUME": self.volume,
            "CLAAS_MODAL_WEIGHTS_VOLUME": self.weights_volume,
            "CLAAS_MODAL_HUB_SECRET": self.hub_secret,
        }
