"""One model for these tests, a peer with checkpoints, and a proxy."""

import os

os.environ["TINKER_TELEMETRY"] = "0"

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.builders.models import build_tiny_qwen3
from tests.contract.tinker.proxy_server import ProxyServer
from tests.contract.tinker.proxy_site import ProxySite, make_checkpoints
from tests.peers.tinker.server import TinkerPeer

VERSIONS = 6


@pytest.fixture(scope="session")
def tinker_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_qwen3(tmp_path_factory.mktemp("tinker") / "model")


@pytest.fixture(scope="module")
def proxy_peer(tinker_model: Path) -> Iterator[TinkerPeer]:
    with TinkerPeer(tinker_model) as peer:
        yield peer


@pytest.fixture(scope="module")
def checkpoints(proxy_peer: TinkerPeer) -> list[str]:
    return make_checkpoints(proxy_peer, VERSIONS)


@pytest.fixture(scope="module")
def shared_site(
    tinker_model: Path, proxy_peer: TinkerPeer, checkpoints: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ProxySite]:
    """A proxy that serves version 1; tests leave it so."""
    root = tmp_path_factory.mktemp("proxy")
    proxy = ProxyServer(tinker_model, proxy_peer.url, proxy_peer.model_name, root)
    site = ProxySite(proxy_peer, checkpoints, proxy)
    site.publish(1)
    proxy.launch()
    try:
        proxy.wait_until_ready()
        yield site
    finally:
        proxy.stop()


@pytest.fixture
def new_site(
    tinker_model: Path, proxy_peer: TinkerPeer, checkpoints: list[str], tmp_path: Path
) -> Iterator[Callable[..., ProxySite]]:
    """Makes a site whose proxy is not launched yet, with settings of its own."""
    made: list[ProxySite] = []

    def make(**environment: str) -> ProxySite:
        root = tmp_path / str(len(made))
        proxy = ProxyServer(tinker_model, proxy_peer.url, proxy_peer.model_name, root, environment)
        made.append(ProxySite(proxy_peer, checkpoints, proxy))
        return made[-1]

    yield make
    proxy_peer.clear_failures()
    for site in made:
        site.proxy.stop()
