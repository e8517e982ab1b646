"""Inputs and paths of a trainer that runs outside a pod."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from claas_contract.input import AdapterIdentity, ModelLocation, ServingTarget, TrainerInput, VllmPod
from claas_contract.jobs import JobIdentity
from claas_crds.v1alpha1.lora import LoraSpec
from claas_trainer.messages.events import Reporter
from claas_trainer.paths import Paths


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    """Paths below the test's own folder, and a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    for name in ("storage", "scratch"):
        (tmp_path / name).mkdir()
    return Paths(
        storage=tmp_path / "storage",
        model=tmp_path / "model",
        hub_cache=tmp_path / "hub",
        scratch=tmp_path / "scratch",
        control_token=tmp_path / "control-token",
        api_key=tmp_path / "api-key",
        hub_token=tmp_path / "hub-token",
        tinker_key=tmp_path / "tinker-key",
        termination_message=tmp_path / "termination-log",
        progress_port=port,
    )


@pytest.fixture
def reporter() -> Iterator[Reporter]:
    """Tells nobody."""
    descriptor = os.open(os.devnull, os.O_WRONLY)
    yield Reporter(descriptor)
    os.close(descriptor)


def document(url: str | None = None, *, max_pause_seconds: int = 30, uid: str = "job-uid") -> TrainerInput:
    """An input for `run`; with a `url`, one vLLM pod is served from there."""
    serving = None
    if url is not None:
        pod = VllmPod(name="vllm-0", uid="pod-uid", url=url, storage_path="/adapters/team/coder")
        serving = ServingTarget(served_name="coder", pods=[pod], max_pause_seconds=max_pause_seconds)
    return TrainerInput(
        adapter=AdapterIdentity(namespace="team", name="coder", uid="adapter-uid", lora_id="user/coder"),
        model=ModelLocation(path="base"),
        lora=LoraSpec(rank=8, alpha=16),
        storage_path="team/coder",
        jobs=[JobIdentity(namespace="team", name="job", uid=uid, attempt=1)],
        parent=0,
        samples_file="/nowhere/samples.json",
        serving=serving,
    )
