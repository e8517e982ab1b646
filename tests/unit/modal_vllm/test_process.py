"""vLLM as a child process: how it ends, and what a container says that can't start it."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import pytest

from claas_modal_client.connection import ModalConnection
from claas_modal_vllm import container
from claas_modal_vllm.container import VllmContainer
from claas_modal_vllm.deployment import ServerDeployment
from claas_modal_vllm.errors import ContainerStartError
from claas_modal_vllm.process import VllmProcess

POLITE = """
import os, pathlib, signal, sys, time
def finish(*ignored):
    time.sleep(0.2)
    pathlib.Path(sys.argv[1]).write_text("finished")
    os._exit(0)
signal.signal(signal.SIGTERM, finish)
print("up", flush=True)
pathlib.Path(sys.argv[1]).write_text("up")
time.sleep(60)
"""
STUBBORN = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork()
pathlib.Path(sys.argv[1] + (".child" if child == 0 else "")).write_text(str(os.getpid()))
time.sleep(60)
"""


def wait_for(file: Path) -> str:
    until = time.monotonic() + 10
    while not (file.exists() and file.read_text()):
        assert time.monotonic() < until
        time.sleep(0.01)
    return file.read_text()


def started(program: str, file: Path) -> VllmProcess:
    process = VllmProcess([sys.executable, "-c", program, str(file)], os.environ)
    wait_for(file)
    return process


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_it_is_asked_to_end_and_finishes_what_it_does(tmp_path: Path) -> None:
    process = started(POLITE, tmp_path / "said")
    await process.stop(10.0)
    assert (tmp_path / "said").read_text() == "finished"
    assert process.exit_code == 0


async def test_what_does_not_end_in_time_is_killed_with_its_children(tmp_path: Path) -> None:
    process = started(STUBBORN, tmp_path / "pid")
    child = int(wait_for(tmp_path / "pid.child"))
    await process.stop(0.1)
    assert process.exit_code == -9
    until = time.monotonic() + 10
    while running(child):
        assert time.monotonic() < until
        await asyncio.sleep(0.01)


async def test_its_end_is_told_with_its_exit_code() -> None:
    process = VllmProcess([sys.executable, "-c", "raise SystemExit(3)"], os.environ)
    assert await asyncio.wait_for(process.ended(), 10.0) == 3
    await process.stop(1.0)


@pytest.fixture
def weights(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Volume of base weights that has the model."""
    root = tmp_path_factory.mktemp("weights")
    folder = root / ServerDeployment.of({}).common.model
    folder.mkdir(parents=True)
    (folder / "config.json").touch()
    monkeypatch.setattr(container, "WEIGHTS_MOUNT", str(root))


def made(folder: Path) -> VllmContainer:
    return VllmContainer(ServerDeployment.of({}), folder, ModalConnection.container())


@pytest.mark.usefixtures("weights")
async def test_a_container_whose_vllm_ends_at_once_says_with_which_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLAAS_CONTROL_TOKEN", "a-token")
    monkeypatch.setenv("CLAAS_MODAL_LISTEN_HOST", "127.83.12.9")
    monkeypatch.setattr(
        container, "vllm_command", lambda *ignored: [sys.executable, "-c", "raise SystemExit(2)"], raising=True
    )
    with pytest.raises(ContainerStartError, match="exit code 2"):
        await made(tmp_path).launch()
    assert (tmp_path / "control-token").read_text() == "a-token"
    assert (tmp_path / "control-token").stat().st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize("token", ["", "two\nlines", "käse"])
async def test_a_container_without_a_usable_control_token_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("CLAAS_CONTROL_TOKEN", token)
    with pytest.raises(ContainerStartError, match="CLAAS_CONTROL_TOKEN of the Modal Secret claas-control"):
        await made(tmp_path).launch()
