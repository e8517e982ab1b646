"""One model for these tests, and a platform with the trainer's app."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders.models import build_tiny_qwen3
from tests.contract.modal.trainer_site import deploy
from tests.peers.modal.server import ModalPeer


@pytest.fixture(scope="session")
def modal_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_qwen3(tmp_path_factory.mktemp("modal") / "model")


@pytest.fixture(scope="package")
def modal_peer(modal_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModalPeer]:
    """With the trainer's app deployed; tests leave no failures behind."""
    with ModalPeer(tmp_path_factory.mktemp("platform")) as peer:
        deploy(peer, modal_model)
        yield peer
