"""A peer for each module, a small app for those that call it, and connections."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from claas_modal_client.connection import ModalAccount, ModalConnection, ModalToken
from claas_modal_client.volume import ModalVolume
from tests.peers.modal.server import TOKEN_ID, TOKEN_SECRET, ModalPeer

APP_FILE = Path(__file__).with_name("echo_app.py")


@pytest.fixture(scope="module")
def modal_peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModalPeer]:
    with ModalPeer(tmp_path_factory.mktemp("modal")) as peer:
        peer.volume("claas-echo")
        yield peer


@pytest.fixture(scope="module")
def echo_app(modal_peer: ModalPeer) -> None:
    """Deploys the small app."""
    command = [sys.executable, "-m", "modal", "deploy", str(APP_FILE)]
    environment = {**os.environ, **modal_peer.environment()}
    deployed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr


@pytest.fixture
def peer(modal_peer: ModalPeer) -> Iterator[ModalPeer]:
    """With nothing that goes wrong."""
    yield modal_peer
    modal_peer.clear_failures()


@pytest.fixture
async def connection(peer: ModalPeer) -> AsyncIterator[ModalConnection]:
    connection = ModalConnection(ModalAccount(ModalToken(TOKEN_ID, TOKEN_SECRET), server_url=peer.url))
    yield connection
    await connection.close()


@pytest.fixture
def volume(connection: ModalConnection) -> ModalVolume:
    """A Volume of the peer."""
    return ModalVolume(connection, "claas-echo")
