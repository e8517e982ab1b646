"""How the app is deployed: settings from the environment of `modal deploy`, which the image keeps for its containers;
and the names by which the trainer's pod finds what was deployed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from claas_contract.places import MODEL_DIRECTORY
from claas_modal_client.deployment import NAME, CommonSettings, DeploymentVariables
from claas_modal_client.deployment import DeploymentError as DeploymentError

CLASS_NAME = "Trainer"
"""The deployed class; its method `step` takes a `StepRequest` and returns a `StepAnswer`."""
STEP_METHOD = "step"


def model_name(base_model: str) -> str:
    """The app's name of a base model, `owner/name`: its repository, or its folder on the mounted claim."""
    return base_model.removeprefix(f"{MODEL_DIRECTORY}/")


@dataclass(frozen=True)
class TrainerDeployment:
    """Settings of a deployment. Another base model is another app."""

    common: CommonSettings
    timeout_seconds: int
    """CLAAS_MODAL_TIMEOUT_SECONDS: after this, Modal ends a step by itself; above `stepTimeoutSeconds` of every
    adapter."""
    start_seconds: int
    """CLAAS_MODAL_START_SECONDS: longest start of a container, with reading the base weights."""
    cpu: float
    """CLAAS_MODAL_CPU: cores."""
    memory_mib: int
    """CLAAS_MODAL_MEMORY_MIB: host memory, which the base weights must fit into."""
    hub_secret: str
    """CLAAS_MODAL_HUB_SECRET: a Modal Secret with HF_TOKEN, for models that ask for one; none when empty."""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> TrainerDeployment:
        """From the environment. Raises DeploymentError."""
        variables = DeploymentVariables(environment)
        return cls(
            common=CommonSettings.of(variables, app="claas-trainer", idle_seconds=45),
            timeout_seconds=variables.number("CLAAS_MODAL_TIMEOUT_SECONDS", 3600, 60, 86400),
            start_seconds=variables.number("CLAAS_MODAL_START_SECONDS", 1200, 60, 86400),
            cpu=variables.cores("CLAAS_MODAL_CPU", 4.0),
            memory_mib=variables.number("CLAAS_MODAL_MEMORY_MIB", 32768, 512, 1048576),
            hub_secret=variables.text("CLAAS_MODAL_HUB_SECRET", NAME, ""),
        )

    def environment(self) -> dict[str, str]:
        """The environment that says all this again: what the image keeps."""
        return {
            **self.common.environment(),
            "CLAAS_MODAL_TIMEOUT_SECONDS": str(self.timeout_seconds),
            "CLAAS_MODAL_START_SECONDS": str(self.start_seconds),
            "CLAAS_MODAL_CPU": str(self.cpu),
            "CLAAS_MODAL_MEMORY_MIB": str(self.memory_mib),
            "CLAAS_MODAL_HUB_SECRET": self.hub_secret,
        }
