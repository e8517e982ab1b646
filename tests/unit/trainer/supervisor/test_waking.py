"""Servers that a dead worker left paused are woken, each whatever becomes of the others."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from claas_trainer.messages.events import PauseAnnounced, PauseConfirmed
from claas_trainer.paths import Paths
from claas_trainer.supervisor import waking
from claas_trainer.supervisor.waking import wake_announced
from claas_trainer.supervisor.watch import WorkerState
from claas_vllm_client import VllmClient, resume_serving
from tests.unit.trainer.conftest import document
from tests.unit.trainer.sleeping_server import sleeping_server


async def test_a_fault_of_our_own_at_one_server_leaves_no_other_asleep(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resume_or_fail(client: VllmClient, *, timeout_seconds: float) -> float:
        if client.base_url == broken.url:
            raise KeyError("nobody thought of it")
        return await resume_serving(client, timeout_seconds=timeout_seconds)

    monkeypatch.setattr(waking, "resume_serving", resume_or_fail)
    with sleeping_server() as broken, sleeping_server() as sound:
        serving = document(broken.url).serving
        assert serving is not None
        other = serving.pods[0].model_copy(update={"name": "vllm-1", "url": sound.url})
        serving = serving.model_copy(update={"pods": [*serving.pods, other]})
        watch = WorkerState(lambda: 0.0)
        for pod in serving.pods:
            watch.take(PauseAnnounced(pod=pod.name, url=pod.url, at=datetime(2026, 1, 1, tzinfo=UTC)))
            watch.take(PauseConfirmed(url=pod.url))
        sound.asleep = True
        assert await wake_announced(serving, paths, watch) == ["vllm-0"]
        assert not sound.asleep
