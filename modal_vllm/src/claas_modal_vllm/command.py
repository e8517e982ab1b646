"""How vLLM is started in a container: its arguments and its environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import claas_vllm
from claas_modal_vllm.deployment import CONTROL_TOKEN, WEIGHTS_MOUNT, ServerDeployment


def vllm_command(deployment: ServerDeployment, host: str, port: int) -> list[str]:
    """The command line. Arguments of the deployment come last, so they win."""
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server",
        "--model", f"{WEIGHTS_MOUNT}/{deployment.common.model}", "--served-model-name", deployment.model_name,
        "--host", host, "--port", str(port),
        "--enable-lora", "--max-lora-rank", str(deployment.max_lora_rank), "--max-loras", str(deployment.max_loras),
        "--api-server-count", "1", "--middleware", "claas_vllm.Companion",
        "--shutdown-timeout", str(deployment.grace_seconds),
        "--disable-access-log-for-endpoints", "/health,/claas/status,/claas/models",
    ]  # fmt: skip
    if sleeps(deployment):
        command.append("--enable-sleep-mode")
    return [*command, *deployment.vllm_arguments]


def sleeps(deployment: ServerDeployment) -> bool:
    """Whether vLLM sleeps while the snapshot is made. Its CPU build has no memory that sleep could free."""
    return deployment.snapshot and bool(deployment.common.gpu)


def vllm_environment(environment: Mapping[str, str], token_file: Path) -> dict[str, str]:
    """The container's environment as vLLM needs it. The control token is in its file alone."""
    # Where these packages are, the companion is: vLLM must find it too.
    sources = str(Path(claas_vllm.__file__).parents[1])
    path = [sources, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        **{name: value for name, value in environment.items() if name != CONTROL_TOKEN},
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(path)),
        "CLAAS_TOKEN_FILE": str(token_file),
        # The path of a socket is short.
        "VLLM_RPC_BASE_PATH": "/tmp",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
