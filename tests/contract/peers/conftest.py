"""One model for these tests, a peer that they share, and one for each test that needs its own."""

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


@pytest.fixture(scope="session")
def shared_peer(model_folder: Path) -> Iterator[TinkerPeer]:
    """For tests that make nothing go wrong: a session of its own costs the SDK half a second."""
    with TinkerPeer(model_folder) as peer:
        yield peer


@pytest.fixture(scope="session")
def shared_service(shared_peer: TinkerPeer) -> tinker.ServiceClient:
    return tinker.ServiceClient(base_url=shared_peer.url, api_key="tml-test")


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
