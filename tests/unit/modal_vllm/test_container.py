"""What keeps a container of the vLLM on Modal from starting."""

from __future__ import annotations

from pathlib import Path

import pytest

from claas_modal_client.connection import ModalConnection
from claas_modal_vllm.container import VllmContainer
from claas_modal_vllm.deployment import ServerDeployment
from claas_modal_vllm.errors import ContainerStartError


async def test_without_the_base_model_on_the_volume_it_says_how_to_fill_it(tmp_path: Path) -> None:
    deployment = ServerDeployment.of({"CLAAS_MODAL_MODEL": "acme/nowhere", "CLAAS_MODAL_GPU": "none"})
    container = VllmContainer(deployment, tmp_path, ModalConnection.container())
    with pytest.raises(ContainerStartError, match=r"has no acme/nowhere/config\.json; fill it by `modal run"):
        await container.launch()
