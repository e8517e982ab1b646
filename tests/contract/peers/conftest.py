"""One model for these tests, and a peer for each."""

import os

os.environ["TINKER_TELEMETRY"] = "0"

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tinker

from tests.builders.models import build_tiny_qwen3
from tests.peers.tinker.server import TinkerPeer


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_qwen3(tmp_path_factory.mktemp("peer") / "model")


@pytest.fixture
def peer(model_folder: Path) -> Iterator[TinkerPeer]:
    with TinkerPeer(model_folder) as peer:
        yield peer


@pytest.fixture
def connect() -> Callable[[TinkerPeer], tinker.ServiceClient]:
    """Opens a session; the process's end closes it, as a killed trainer's would be."""

    def connect(peer: TinkerPeer) -> tinker.ServiceClient:
        return tinker.ServiceClient(base_url=peer.url, api_key="tml-test")

    return connect
