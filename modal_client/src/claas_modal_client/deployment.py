"""The settings that every Modal app of this project is deployed with.

`modal deploy` reads them from its environment, and the app puts them into its image's, because a container reads the
same module again and must come to the same app.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

NO_GPU = "none"

NAME = re.compile(r"[A-Za-z0-9]([-._A-Za-z0-9]{0,62}[A-Za-z0-9])?")
"""Names of apps, Volumes and Secrets."""
_REPOSITORY = re.compile(r"[A-Za-z0-9][-._A-Za-z0-9]*/[A-Za-z0-9][-._A-Za-z0-9]*")
_GPU = re.compile(r"[A-Za-z0-9][-A-Za-z0-9]*!?(:1)?")
_REGION = re.compile(r"[a-z0-9][-a-z0-9]*")


class DeploymentError(ValueError):
    """A setting of a deployment is wrong; the message names the variable."""


def model_missing(volume: str, model: str, what: str) -> str:
    """What to say of a base model whose files are not as they should be on the Volume of base weights."""
    return (
        f"the Modal Volume {volume}: {what}; fill it by `modal run -m claas_trainer.engines.modal.app::fill_weights`,"
        f" or by `modal volume put {volume} FOLDER /{model}`"
    )


@dataclass(frozen=True)
class DeploymentVariables:
    """Checked values of environment variables. All methods raise DeploymentError."""

    environment: Mapping[str, str]

    def text(self, name: str, pattern: re.Pattern[str], otherwise: str) -> str:
        """A text of that form."""
        value = self.environment.get(name, "").strip() or otherwise
        if value and not pattern.fullmatch(value):
            raise DeploymentError(f"{name}: {value!r} does not match {pattern.pattern}")
        return value

    def texts(self, name: str, pattern: re.Pattern[str], otherwise: tuple[str, ...]) -> tuple[str, ...]:
        """Texts of that form with commas between."""
        value = self.environment.get(name, "").strip()
        if not value:
            return otherwise
        parts = tuple(part.strip() for part in value.split(","))
        wrong = next((part for part in parts if not pattern.fullmatch(part)), None)
        if wrong is not None:
            raise DeploymentError(f"{name}: {wrong!r} does not match {pattern.pattern}")
        return parts

    def number(self, name: str, otherwise: int, least: int, most: int) -> int:
        """A whole number within limits."""
        value = self.environment.get(name, "").strip() or str(otherwise)
        if not re.fullmatch(r"[0-9]{1,9}", value) or not least <= int(value) <= most:
            raise DeploymentError(f"{name}: {value!r} is no whole number from {least} to {most}")
        return int(value)

    def cores(self, name: str, otherwise: float) -> float:
        """A number of CPU cores above 0."""
        value = self.environment.get(name, "").strip() or str(otherwise)
        if not re.fullmatch(r"\d{1,3}(\.\d{1,3})?", value) or not float(value):
            raise DeploymentError(f"{name}: {value!r} is no number of cores, such as 4 or 0.5")
        return float(value)

    def gpus(self, otherwise: tuple[str, ...]) -> tuple[str, ...]:
        """CLAAS_MODAL_GPU: types by preference; empty for `none`."""
        if self.environment.get("CLAAS_MODAL_GPU", "").strip().lower() == NO_GPU:
            return ()
        return self.texts("CLAAS_MODAL_GPU", _GPU, otherwise)


@dataclass(frozen=True)
class CommonSettings:
    """What trainer and server have in common. Another base model is another app."""

    app: str
    """CLAAS_MODAL_APP: name of the app."""
    model: str
    """CLAAS_MODAL_MODEL: the base model, as `owner/name` on the hub; it is in a folder of this name on the Volume
    of base weights."""
    gpu: tuple[str, ...]
    """CLAAS_MODAL_GPU: one type of GPU, or several by preference, with commas between; empty here, and `none` there,
    for the CPU."""
    region: tuple[str, ...]
    """CLAAS_MODAL_REGION: regions, with commas between; a container may be anywhere when it is empty. Costs more."""
    idle_seconds: int
    """CLAAS_MODAL_IDLE_SECONDS: how long a container waits for the next request, and is paid for."""
    volume: str
    """CLAAS_MODAL_VOLUME: the Volume with the versions' files, pointers and receipts."""
    weights_volume: str
    """CLAAS_MODAL_WEIGHTS_VOLUME: the Volume with base weights."""

    @classmethod
    def of(cls, variables: DeploymentVariables, *, app: str, idle_seconds: int) -> CommonSettings:
        """From the environment, with the app's own defaults. Raises DeploymentError."""
        return cls(
            app=variables.text("CLAAS_MODAL_APP", NAME, app),
            model=variables.text("CLAAS_MODAL_MODEL", _REPOSITORY, "Qwen/Qwen3-8B"),
            gpu=variables.gpus(("L40S",)),
            region=variables.texts("CLAAS_MODAL_REGION", _REGION, ()),
            # The limits are Modal's.
            idle_seconds=variables.number("CLAAS_MODAL_IDLE_SECONDS", idle_seconds, 2, 3600),
            volume=variables.text("CLAAS_MODAL_VOLUME", NAME, "claas-adapters"),
            weights_volume=variables.text("CLAAS_MODAL_WEIGHTS_VOLUME", NAME, "claas-weights"),
        )

    def environment(self) -> dict[str, str]:
        """The environment that says all this again: what the image keeps."""
        return {
            "CLAAS_MODAL_APP": self.app,
            "CLAAS_MODAL_MODEL": self.model,
            "CLAAS_MODAL_GPU": ",".join(self.gpu) or NO_GPU,
            "CLAAS_MODAL_REGION": ",".join(self.region),
            "CLAAS_MODAL_IDLE_SECONDS": str(self.idle_seconds),
            "CLAAS_MODAL_VOLUME": self.volume,
            "CLAAS_MODAL_WEIGHTS_VOLUME": self.weights_volume,
        }
