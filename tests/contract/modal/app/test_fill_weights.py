"""`modal run` of the function that fills the Volume of base weights, against a hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders.models import build_tiny_qwen3
from tests.builders.training.hub import ModelHub
from tests.contract.modal.app.deployed import REPOSITORY, WEIGHTS, modal_cli
from tests.peers.modal.server import ModalPeer

pytestmark = pytest.mark.contract
COMMAND = ("run", "-m", "claas_trainer.engines.modal.app::fill_weights")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[ModelHub]:
    with ModelHub(build_tiny_qwen3(tmp_path / "model"), REPOSITORY, token="hf_right") as made:
        yield made


def test_the_documented_command_fills_the_volume_with_the_token_of_the_secret(hub: ModelHub, tmp_path: Path) -> None:
    settings = {"CLAAS_MODAL_MODEL": REPOSITORY, "CLAAS_MODAL_GPU": "none", "CLAAS_MODAL_HUB_SECRET": "hub"}
    with ModalPeer(tmp_path / "peer", container_environment={"HF_ENDPOINT": hub.url}) as peer:
        peer.secret("hub", {"HF_TOKEN": "hf_wrong"})
        with pytest.raises(AssertionError, match="HTTP 401"):
            modal_cli(peer, *COMMAND, settings=settings)
        peer.secret("hub", {"HF_TOKEN": hub.token or ""})
        modal_cli(peer, *COMMAND, settings=settings)
        found = peer.volume(WEIGHTS) / REPOSITORY
        assert (found / "model.safetensors").read_bytes() == (hub.folder / "model.safetensors").read_bytes()
        assert all("hf_" not in container.log for container in peer.containers(alive=False))
