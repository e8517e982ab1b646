"""Deploys the sample app to a peer, and connects a client to it in this process."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import modal
import pytest

from tests.peers.modal.server import ModalPeer

APPS = Path(__file__).with_name("modal_apps")
CALL_S = 60.0


def deploy(peer: ModalPeer, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`modal deploy -m sample_app.app`, unmodified, with further environment variables."""
    return subprocess.run(
        [sys.executable, "-m", "modal", "deploy", "-m", "sample_app.app"],
        env={**os.environ, **peer.environment(), "PYTHONPATH": str(APPS), **(environment or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def deploy_sample(peer: ModalPeer, environment: dict[str, str] | None = None) -> None:
    peer.secret("sample-secret", {"SAMPLE_WORD": "hush"})
    deployed = deploy(peer, environment)
    assert deployed.returncode == 0, deployed.stderr


def connect(peer: ModalPeer, monkeypatch: pytest.MonkeyPatch) -> modal.Client:
    """A client of this process; payloads are cbor."""
    for name, value in {**peer.environment(), "MODAL_PAYLOAD_FORMAT": "cbor"}.items():
        monkeypatch.setenv(name, value)
    environment = peer.environment()
    return modal.Client.from_credentials(environment["MODAL_TOKEN_ID"], environment["MODAL_TOKEN_SECRET"])


def until(holds: Callable[[], bool], seconds: float = CALL_S) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)
