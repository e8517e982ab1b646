"""The app on the peer, for all tests of this folder: starting vLLM is most of their time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.builders.models import build_tiny_qwen3, build_versions
from tests.contract.modal.serving.modal_site import CONTAINER_ENVIRONMENT, CONTROL_TOKEN, MODEL, ModalSite
from tests.peers.modal.server import ModalPeer


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModalSite]:
    root = tmp_path_factory.mktemp("modal-serving")
    model = build_tiny_qwen3(root / "model")
    versions = build_versions(model, root / "storage", count=6)
    with ModalPeer(root / "peer", container_environment=CONTAINER_ENVIRONMENT) as peer:
        shutil.copytree(model, peer.volume("claas-weights") / MODEL)
        peer.volume("claas-adapters")
        peer.secret("claas-control", {"CLAAS_CONTROL_TOKEN": CONTROL_TOKEN})
        site = ModalSite(peer, versions)
        site.deploy()
        yield site
