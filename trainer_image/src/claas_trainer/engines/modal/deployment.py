"""How the app is deployed: settings from the environment of `modal deploy`, which the image keeps for its containers;
and the names by which the trainer's pod finds what was deployed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

CLASS_NAME = "Trainer"
"""The deployed class; its method `step` takes a `StepRequest` and returns a `StepAnswer`."""
STEP_METHOD = "step"
FILL_FUNCTION = "fill_weights"
"""The deployed function that downloads a base model from the hub into the Volume of base weights."""
NO_GPU = "none"

_NAME = re.compile(r"[A-Za-z0-9]([-._A-Za-z0-9]{0,62}[A-Za-z0-9])?")
_REPOSITORY = re.compile(r"[A-Za-z0-9][-._A-Za-z0-9]*/[A-Za-z0-9][-._A-Za-z0-9]*")
_GPU = re.compile(r"[A-Za-z0-9][-A-Za-z0-9]*!?(:1)?")
_REGION = re.compile(r"[a-z0-9][-a-z0-9]*")


class DeploymentError(ValueError):
    """A setting of a deployment is wrong; the message names the variable."""


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
    """CLAAS_MODAL_MEMORY_MIB: host memory; the base weights must fit twice while they are copied to a GPU."""
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

        def text(name: str, pattern: re.Pattern[str], otherwise: str) -> str:
            value = environment.get(name) or otherwise
            if value and not pattern.fullmatch(value):
                raise DeploymentError(f"{name}: {value!r} does not match {pattern.pattern}")
            return value

        def texts(name: str, pattern: re.Pattern[str], otherwise: tuple[str, ...]) -> tuple[str, ...]:
            value = environment.get(name)
            if not value:
                return otherwise
            parts = tuple(part.strip() for part in value.split(","))
            wrong = next((part for part in parts if not pattern.fullmatch(part)), None)
            if wrong is not None:
                raise DeploymentError(f"{name}: {wrong!r} does not match {pattern.pattern}")
            return parts

        def number(name: str, otherwise: int, least: int, most: int) -> int:
            value = environment.get(name) or str(otherwise)
            if not value.isdecimal() or not least <= int(value) <= most:
                raise DeploymentError(f"{name}: {value!r} is no whole number from {least} to {most}")
            return int(value)

        def cores(name: str, otherwise: float) -> float:
            value = environment.get(name) or str(otherwise)
            if not re.fullmatch(r"\d{1,3}(\.\d{1,3})?", value) or not float(value):
                raise DeploymentError(f"{name}: {value!r} is no number of cores, such as 4 or 0.5")
            return float(value)

        gpu = environment.get("CLAAS_MODAL_GPU", "").strip()
        return cls(
            app=text("CLAAS_MODAL_APP", _NAME, default.app),
            model=text("CLAAS_MODAL_MODEL", _REPOSITORY, default.model),
            gpu=() if gpu.lower() == NO_GPU else texts("CLAAS_MODAL_GPU", _GPU, default.gpu),
            region=texts("CLAAS_MODAL_REGION", _REGION, default.region),
            idle_seconds=number("CLAAS_MODAL_IDLE_SECONDS", default.idle_seconds, 2, 3600),
            timeout_seconds=number("CLAAS_MODAL_TIMEOUT_SECONDS", default.timeout_seconds, 60, 86400),
            start_seconds=number("CLAAS_MODAL_START_SECONDS", default.start_seconds, 60, 86400),
            cpu=cores("CLAAS_MODAL_CPU", default.cpu),
            memory_mib=number("CLAAS_MODAL_MEMORY_MIB", default.memory_mib, 512, 1048576),
            volume=text("CLAAS_MODAL_VOLUME", _NAME, default.volume),
            weights_volume=text("CLAAS_MODAL_WEIGHTS_VOLUME", _NAME, default.weights_volume),
            hub_secret=text("CLAAS_MODAL_HUB_SECRET", _NAME, default.hub_secret),
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
