"""tools/modal-live-check against the peer: what is as assumed, what differs, and what it asks first.

Its part about a server is run by the end-to-end tests, which have one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.builders.models import build_tiny_qwen3
from tests.cluster.paths import REPOSITORY_ROOT
from tests.peers.modal.failures import Slow, When
from tests.peers.modal.server import ModalPeer
from tools.modal_live_check import main

pytestmark = pytest.mark.contract

MODEL = "claas/tiny"
PACKAGES = ":".join(str(folder) for folder in sorted(REPOSITORY_ROOT.glob("*/src")))


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModalPeer]:
    """With the trainer's app, deployed as docs/modal.md says."""
    model = build_tiny_qwen3(tmp_path_factory.mktemp("model") / "model")
    with ModalPeer(tmp_path_factory.mktemp("modal"), idle_s=60.0) as peer:
        environment = {
            **os.environ,
            **peer.environment(),
            "PYTHONPATH": PACKAGES,
            "CLAAS_MODAL_MODEL": MODEL,
            "CLAAS_MODAL_GPU": "none",
        }
        for command in (
            ["volume", "create", "claas-weights", "--version", "2"],
            ["volume", "put", "claas-weights", str(model), f"/{MODEL}"],
            ["deploy", "-m", "claas_trainer.engines.modal.app"],
        ):
            subprocess.run([sys.executable, "-m", "modal", *command], env=environment, check=True, timeout=60)
        yield peer


@pytest.fixture(autouse=True)
def account(platform: ModalPeer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in platform.environment().items():
        monkeypatch.setenv(name, value)
    yield
    platform.clear_failures()


def check(*more: str) -> int:
    return main([MODEL, "--yes", "--without", "serving", *more])


def test_a_platform_as_the_engine_assumes_it_has_no_difference_and_keeps_nothing(
    platform: ModalPeer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check() == 0
    printed = capsys.readouterr().out
    assert "DIFFERS" not in printed
    assert "the same step again: found" in printed
    assert platform.environment()["MODAL_TOKEN_SECRET"] not in printed
    assert [path for path in platform.volume("claas-adapters").rglob("*") if path.is_file()] == []


def test_a_call_that_is_done_although_it_was_cancelled_is_a_difference(
    platform: ModalPeer, capsys: pytest.CaptureFixture[str]
) -> None:
    platform.fail("FunctionCallCancel", Slow(5.0), when=When.RECEIVED)
    assert check() == 1
    differing = [line for line in capsys.readouterr().out.splitlines() if "DIFFERS" in line]
    assert len(differing) == 1
    assert "cancelled" in differing[0]


def test_an_app_that_is_not_deployed_is_told_and_is_no_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    assert check("--trainer-app", "another", "--without", "steps") == 2
    assert "FAILED   look-ups" in capsys.readouterr().out


def test_nothing_is_asked_before_the_cost_is_agreed_to(
    platform: ModalPeer, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    before = len(platform.rpcs)

    def no(question: str) -> str:
        asked.append(question)
        return "n"

    assert main([MODEL, "--without", "serving"], no) == 2
    assert asked == ["Go on? [y/N] "]
    assert "one small step" in capsys.readouterr().out
    assert platform.rpcs[before:] == []


def test_a_token_that_is_not_set_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MODAL_PROXY_KEY", raising=False)
    monkeypatch.delenv("MODAL_PROXY_SECRET", raising=False)
    assert main([MODEL, "--yes"]) == 2
    assert "set MODAL_PROXY_KEY and MODAL_PROXY_SECRET" in capsys.readouterr().err
