"""The command line names what is missing and ends with code 2."""

import os
from pathlib import Path

import pytest

from tests.cluster.__main__ import main


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLAAS_CACHE", str(tmp_path))
    monkeypatch.delenv("CLUSTER", raising=False)


@pytest.mark.parametrize("command", ["up", "down"])
def test_the_full_cluster_asks_for_root(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main([command]) == 2
    assert "needs root" in capsys.readouterr().err


def test_images_can_not_be_loaded_into_a_cluster_that_is_not_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["load-image", "claas-operator:dev"]) == 2
    assert "python -m tests.cluster up" in capsys.readouterr().err


def test_a_current_context_without_a_kubeconfig_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLUSTER", "current")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    assert main(["up"]) == 2
    assert str(tmp_path / "absent") in capsys.readouterr().err


def test_an_unknown_choice_of_cluster_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLUSTER", "other")
    assert main(["status"]) == 2
    assert "CLUSTER=other" in capsys.readouterr().err


def test_a_cluster_that_is_down_has_status_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status"]) == 1
    assert "not running" in capsys.readouterr().out
