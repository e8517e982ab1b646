"""How the SDK is set in every process that uses this package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.contract
SETTINGS = """
import claas_modal_client.connection
from modal.config import config
print(config["server_url"], config["token_id"], config["payload_format"], config["max_throttle_wait"])
"""


def settings(home: Path, **variables: str) -> list[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MODAL_")}
    environment.update(variables, HOME=str(home))
    ended = subprocess.run(
        [sys.executable, "-c", SETTINGS], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    return ended.stdout.split()


def test_no_file_of_a_user_s_is_read_and_nothing_is_pickled_or_throttled_for_ever(tmp_path: Path) -> None:
    (tmp_path / ".modal.toml").write_text(
        '[default]\nserver_url = "http://elsewhere.example"\ntoken_id = "ak-user"\npayload_format = "pickle"\n'
    )
    url, token, payload_format, throttle = settings(tmp_path, MODAL_CONFIG_PATH=str(tmp_path / ".modal.toml"))
    assert url.startswith("https://api.modal.com")
    assert (token, payload_format, throttle) == ("None", "cbor", "60")


def test_the_address_and_the_patience_may_be_set_from_outside(tmp_path: Path) -> None:
    url, _, _, throttle = settings(
        tmp_path, MODAL_SERVER_URL="http://peer.example:1", MODAL_MAX_THROTTLE_WAIT="5", MODAL_PAYLOAD_FORMAT="pickle"
    )
    assert (url, throttle) == ("http://peer.example:1", "5")
