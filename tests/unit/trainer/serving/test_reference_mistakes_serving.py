"""What an earlier system got wrong around its training step, one test for each; the others stand with the step's."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from claas_contract.input import ModelLocation, ServingTarget, TrainerInput, VllmPod
from claas_crds.v1alpha1.serving import PauseMode
from claas_crds.v1alpha1.training import TrainingConfig
from claas_trainer.attempt.initialise import initialise
from claas_trainer.attempt.run import run
from claas_trainer.errors import VersionRejectedError
from claas_trainer.messages.events import Reporter
from claas_trainer.paths import Paths
from claas_trainer.serving.handover.sleep import SleepHandover
from claas_trainer.serving.pods import connect
from claas_trainer.store.versions import VersionStore
from tests.builders.models import build_tiny_qwen3
from tests.unit.trainer.conftest import document
from tests.unit.trainer.sleeping_server import SleepingServer


class WatchedServer(SleepingServer):
    """Calls `when_put_to_sleep` at that moment. Its memory is freed by sleep alone, as vLLM's is."""

    def __init__(self, when_put_to_sleep: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._when_put_to_sleep = when_put_to_sleep
        self.frees_memory = False

    def answer(self, method: str, path: str) -> tuple[int, object]:
        if path == "/sleep":
            self._when_put_to_sleep()
            self.frees_memory = True
        if path == "/wake_up":
            self.frees_memory = False
        return super().answer(method, path)


@contextmanager
def started(server: WatchedServer) -> Iterator[WatchedServer]:
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def reporter() -> Iterator[Reporter]:
    descriptor = os.open(os.devnull, os.O_WRONLY)
    yield Reporter(descriptor)
    os.close(descriptor)


def job(model: Path, paths: Paths, url: str | None) -> TrainerInput:
    samples = paths.scratch / "samples.json"
    samples.write_text(json.dumps([{"user_prompt": "Why?", "response": "Because.", "feedback": "kinder"}]))
    return document(url).model_copy(
        update={
            "model": ModelLocation(path=str(model)),
            "samples_file": str(samples),
            "training": TrainingConfig(learning_rate=1e-3, teacher_top_k=10),
        }
    )


async def test_mistake_08_nothing_of_the_base_model_is_read_in_the_pause(
    tmp_path: Path, paths: Paths, reporter: Reporter
) -> None:
    """There, it was loaded from the disk for each step while serving waited. Here its files are overwritten, byte for
    byte and in place, as soon as serving sleeps, and the version is still the same."""
    model = build_tiny_qwen3(tmp_path / "tiny")
    undisturbed = replace(paths, storage=paths.storage / "undisturbed")
    unserved = job(model, undisturbed, None)
    initialise(unserved, undisturbed, reporter)
    await run(unserved, undisturbed, reporter)

    files = [file for file in model.iterdir() if file.is_file()]
    slept: list[bool] = []

    def overwrite() -> None:
        slept.append(True)
        for file in files:
            with file.open("r+b") as opened:
                opened.write(b"\xff" * file.stat().st_size)

    with started(WatchedServer(overwrite)) as server:
        task = job(model, paths, server.url)
        initialise(task, paths, reporter)
        # This server takes no adapter; by then the version is published.
        with pytest.raises(VersionRejectedError):
            await run(task, paths, reporter)
    assert slept
    assert all(set(file.read_bytes()) == {0xFF} for file in files)
    found, wanted = (
        VersionStore(each.adapter_folder("team/coder")).read(1).record.files for each in (paths, undisturbed)
    )
    assert found == wanted


@pytest.mark.parametrize("pause", PauseMode)
async def test_mistake_09_serving_is_put_to_sleep_and_not_only_paused(
    pause: PauseMode, paths: Paths, reporter: Reporter
) -> None:
    """There, it was `POST /pause?level=1`, which frees no memory."""
    with started(WatchedServer()) as server:
        pod = VllmPod(name="vllm-0", uid="uid", url=server.url, storage_path="/adapters/a")
        serving = ServingTarget(
            served_name="coder", pods=[pod], pause=pause, drain_timeout_seconds=1, max_pause_seconds=10
        )
        async with connect(serving, paths) as pods:
            handover = SleepHandover(pods, serving, reporter)
            await handover.check(None)
            async with handover.paused():
                assert server.frees_memory
                assert "POST /wake_up" not in server.calls
            assert not server.frees_memory
            assert not server.asleep
    assert server.calls.count("POST /sleep") == 1
    assert server.calls.count("POST /wake_up") == 1
