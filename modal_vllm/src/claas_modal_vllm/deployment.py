"""How the app is deployed: settings from the environment of `modal deploy`, which the image keeps for containers."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from claas_modal_client.deployment import NAME, CommonSettings, DeploymentError, DeploymentVariables

PORT = 8000
"""Where vLLM listens in a container of Modal."""
WEIGHTS_MOUNT = "/weights"
"""Where containers see the Volume of base weights, read-only."""
CONTROL_TOKEN = "CLAAS_CONTROL_TOKEN"
"""Key of the control token in the Modal Secret, and so the variable that containers find it in."""

_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/+-]{0,199}")
_REGION = re.compile(r"[a-z0-9][-a-z0-9]*")
_ON_OFF = re.compile(r"on|off")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/-]*")
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True)
class ServerDeployment:
    """Settings of a deployment. Another base model is another app."""

    common: CommonSettings
    model_name: str
    """CLAAS_MODAL_MODEL_NAME: the base model's name for clients, as in `spec.model.name`."""
    image: str
    """CLAAS_MODAL_VLLM_IMAGE: an image with vLLM; the stock one of the release that is tested when empty."""
    max_lora_rank: int
    """CLAAS_MODAL_MAX_LORA_RANK: at least `spec.lora.rank` of every adapter."""
    max_loras: int
    """CLAAS_MODAL_MAX_LORAS: adapters served plus one, which a swap needs."""
    vllm_arguments: tuple[str, ...]
    """CLAAS_MODAL_VLLM_ARGS: more arguments for vLLM, as a shell reads them."""
    min_containers: int
    """CLAAS_MODAL_MIN_CONTAINERS: kept running, and paid for, without requests."""
    max_containers: int
    """CLAAS_MODAL_MAX_CONTAINERS: with more than one, containers change to a new version one after the other."""
    target_concurrency: int
    """CLAAS_MODAL_TARGET_CONCURRENCY: requests at once for each container, above which Modal adds one."""
    cpu: float
    """CLAAS_MODAL_CPU: cores."""
    memory_mib: int
    """CLAAS_MODAL_MEMORY_MIB: host memory. A snapshot holds the base weights in it."""
    start_seconds: int
    """CLAAS_MODAL_START_SECONDS: longest start of a container until it serves every pointer's version."""
    grace_seconds: int
    """CLAAS_MODAL_GRACE_SECONDS: time for running requests when a container is stopped."""
    routing_region: str
    """CLAAS_MODAL_ROUTING_REGION: where Modal takes requests."""
    control_secret: str
    """CLAAS_MODAL_CONTROL_SECRET: the Modal Secret with CLAAS_CONTROL_TOKEN."""
    snapshot: bool
    """CLAAS_MODAL_GPU_SNAPSHOT: on starts containers from a snapshot of a sleeping vLLM."""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> ServerDeployment:
        """From the environment. Raises DeploymentError."""
        variables = DeploymentVariables(environment)
        common = CommonSettings.of(variables, app="claas-vllm", idle_seconds=300)
        rank = variables.number("CLAAS_MODAL_MAX_LORA_RANK", 64, 1, 512)
        if rank not in _RANKS:
            raise DeploymentError(f"CLAAS_MODAL_MAX_LORA_RANK: {rank} is none of {', '.join(map(str, _RANKS))}")
        found = cls(
            common=common,
            model_name=variables.text("CLAAS_MODAL_MODEL_NAME", _MODEL_NAME, common.model),
            image=variables.text("CLAAS_MODAL_VLLM_IMAGE", _IMAGE, ""),
            max_lora_rank=rank,
            max_loras=variables.number("CLAAS_MODAL_MAX_LORAS", 4, 2, 1024),
            vllm_arguments=_arguments(environment.get("CLAAS_MODAL_VLLM_ARGS", "")),
            min_containers=variables.number("CLAAS_MODAL_MIN_CONTAINERS", 0, 0, 1000),
            max_containers=variables.number("CLAAS_MODAL_MAX_CONTAINERS", 1, 1, 1000),
            target_concurrency=variables.number("CLAAS_MODAL_TARGET_CONCURRENCY", 64, 1, 10000),
            cpu=variables.cores("CLAAS_MODAL_CPU", 4.0),
            memory_mib=variables.number("CLAAS_MODAL_MEMORY_MIB", 32768, 512, 1048576),
            start_seconds=variables.number("CLAAS_MODAL_START_SECONDS", 1200, 60, 3600),
            grace_seconds=variables.number("CLAAS_MODAL_GRACE_SECONDS", 60, 0, 3600),
            routing_region=variables.text("CLAAS_MODAL_ROUTING_REGION", _REGION, "us-east"),
            control_secret=variables.text("CLAAS_MODAL_CONTROL_SECRET", NAME, "claas-control"),
            snapshot=variables.text("CLAAS_MODAL_GPU_SNAPSHOT", _ON_OFF, "off") == "on",
        )
        if found.min_containers > found.max_containers:
            raise DeploymentError("CLAAS_MODAL_MIN_CONTAINERS is above CLAAS_MODAL_MAX_CONTAINERS")
        return found

    def environment(self) -> dict[str, str]:
        """The environment that says all this again: what the image keeps."""
        return {
            **self.common.environment(),
            "CLAAS_MODAL_MODEL_NAME": self.model_name,
            "CLAAS_MODAL_VLLM_IMAGE": self.image,
            "CLAAS_MODAL_MAX_LORA_RANK": str(self.max_lora_rank),
            "CLAAS_MODAL_MAX_LORAS": str(self.max_loras),
            "CLAAS_MODAL_VLLM_ARGS": shlex.join(self.vllm_arguments),
            "CLAAS_MODAL_MIN_CONTAINERS": str(self.min_containers),
            "CLAAS_MODAL_MAX_CONTAINERS": str(self.max_containers),
            "CLAAS_MODAL_TARGET_CONCURRENCY": str(self.target_concurrency),
            "CLAAS_MODAL_CPU": str(self.cpu),
            "CLAAS_MODAL_MEMORY_MIB": str(self.memory_mib),
            "CLAAS_MODAL_START_SECONDS": str(self.start_seconds),
            "CLAAS_MODAL_GRACE_SECONDS": str(self.grace_seconds),
            "CLAAS_MODAL_ROUTING_REGION": self.routing_region,
            "CLAAS_MODAL_CONTROL_SECRET": self.control_secret,
            "CLAAS_MODAL_GPU_SNAPSHOT": "on" if self.snapshot else "off",
        }


def _arguments(text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise DeploymentError(f"CLAAS_MODAL_VLLM_ARGS: {error}; quote it as for a shell") from None
