"""The Sleep hand-over against servers that sleep, refuse, hang and are not there."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from claas_contract.input import ServingTarget, VllmPod
from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.serving import PauseMode
from claas_crds.v1alpha1.step import JobPhase
from claas_trainer.engines.access import GpuNeed
from claas_trainer.errors import ServingError
from claas_trainer.gpu import Gpu
from claas_trainer.messages.events import Awake, Event, PauseAnnounced, PhaseReached, Reporter, decode
from claas_trainer.paths import Paths
from claas_trainer.serving.handover import checks
from claas_trainer.serving.handover import sleep as sleep_handover
from claas_trainer.serving.handover.sleep import SleepHandover
from claas_trainer.serving.pods import connect
from tests.unit.trainer.sleeping_server import TOKEN, SleepingServer, sleeping_server

NOBODY = "http://127.0.0.1:9"


class Events:
    """A pipe as the supervisor has it."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()
        self.reporter = Reporter(self._writing)

    def read(self) -> list[Event]:
        os.close(self._writing)
        with os.fdopen(self._reading, "rb") as file:
            return [decode(line) for line in file]


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def server() -> Iterator[SleepingServer]:
    with sleeping_server() as server:
        yield server


def target(*urls: str, pause: PauseMode = PauseMode.KEEP, storage_path: str | None = "/adapters/a") -> ServingTarget:
    pods = [
        VllmPod(name=f"vllm-{index}", uid=f"uid-{index}", url=url, storage_path=storage_path)
        for index, url in enumerate(urls)
    ]
    return ServingTarget(served_name="coder", pods=pods, pause=pause, drain_timeout_seconds=1, max_pause_seconds=10)


@asynccontextmanager
async def handover(serving: ServingTarget, events: Events, paths: Paths) -> AsyncIterator[SleepHandover]:
    async with connect(serving, paths) as pods:
        yield SleepHandover(pods, serving, events.reporter)


async def failure_of_check(
    serving: ServingTarget, events: Events, paths: Paths, gpu: GpuNeed | None = None
) -> FailureReason:
    async with handover(serving, events, paths) as sleep:
        with pytest.raises(ServingError) as caught:
            await sleep.check(gpu)
    assert "vllm-0" in caught.value.message or gpu is not None
    return caught.value.reason


async def test_a_pause_is_announced_before_it_is_made_and_ended_after_the_step(
    server: SleepingServer, events: Events, paths: Paths
) -> None:
    async with handover(target(server.url), events, paths) as sleep:
        await sleep.check(None)
        async with sleep.paused() as times:
            assert server.asleep
        assert not server.asleep
    assert times.sleep is not None
    assert times.serving_gap is not None
    assert times.serving_gap >= times.sleep
    told = events.read()
    assert [each.phase for each in told if isinstance(each, PhaseReached)] == [JobPhase.PAUSING, JobPhase.RESUMING]
    told = [each for each in told if not isinstance(each, PhaseReached)]
    assert isinstance(told[0], PauseAnnounced)
    assert isinstance(told[-1], Awake)


async def test_after_the_pause_the_adapter_is_seen_to_answer_and_the_gap_is_over_before_that(
    server: SleepingServer, events: Events, paths: Paths
) -> None:
    server.gpu_uuids = []
    alias = {"name": "coder", "target": "coder@1", "path": "/adapters/a/versions/1", "version": 1, "verified": False}
    server.aliases = [alias]
    async with handover(target(server.url), events, paths) as sleep:
        await sleep.check(None)
        assert "POST /v1/completions" not in server.calls
        async with sleep.paused() as times:
            pass
    woken = server.calls.index("POST /wake_up")
    # The adapter and the base are asked; this server can't remember the answer, which costs the step nothing.
    assert server.calls[woken:].count("POST /v1/completions") == 2
    assert "PUT /claas/aliases/coder" in server.calls
    assert times.serving_gap is not None


async def test_a_step_that_fails_wakes_serving(server: SleepingServer, events: Events, paths: Paths) -> None:
    async with handover(target(server.url), events, paths) as sleep:
        with pytest.raises(ZeroDivisionError):
            async with sleep.paused():
                raise ZeroDivisionError
    assert not server.asleep


async def test_a_server_that_ends_in_the_pause_costs_no_step_and_is_not_waited_for(
    events: Events, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("claas_vllm_client.serving._GONE_SECONDS", 0.3)
    with sleeping_server() as lost, sleeping_server() as other:
        async with handover(target(lost.url, other.url), events, paths) as sleep:
            await sleep.check(None)
            async with sleep.paused() as times:
                assert lost.asleep
                lost.stop()
        assert not other.asleep
        woken = {event.url for event in events.read() if isinstance(event, Awake)}
        assert woken == {lost.url, other.url}
    assert times.serving_gap is not None
    assert times.serving_gap < 5


async def test_one_server_that_refuses_to_sleep_wakes_the_other(
    server: SleepingServer, events: Events, paths: Paths
) -> None:
    with sleeping_server() as other:
        other.refuses_sleep = True
        async with handover(target(server.url, other.url), events, paths) as sleep:
            with pytest.raises(ServingError) as caught:
                async with sleep.paused():
                    raise AssertionError("the step must not run")
    assert caught.value.reason is FailureReason.PAUSE_FAILED
    assert "POST /sleep" in server.calls
    assert not server.asleep


async def test_a_drain_that_times_out_fails_and_aborts_nothing(events: Events, paths: Paths) -> None:
    with sleeping_server(hangs=True) as server:
        async with handover(target(server.url, pause=PauseMode.WAIT), events, paths) as sleep:
            with pytest.raises(ServingError) as caught:
                async with sleep.paused():
                    raise AssertionError("the step must not run")
        assert not server.asleep
        assert "POST /sleep" not in server.calls
    assert caught.value.reason is FailureReason.DRAIN_TIMED_OUT


async def test_a_cancelled_step_wakes_serving(server: SleepingServer, events: Events, paths: Paths) -> None:
    async with handover(target(server.url), events, paths) as sleep:
        stepping = asyncio.Event()

        async def step() -> None:
            async with sleep.paused():
                stepping.set()
                await asyncio.sleep(30)

        task = asyncio.create_task(step())
        async with asyncio.timeout(5):
            await stepping.wait()
        assert server.asleep
        task.cancel()
        await asyncio.wait({task}, timeout=5)
    assert not server.asleep


async def test_an_unreachable_server_fails_the_check(events: Events, paths: Paths) -> None:
    assert await failure_of_check(target(NOBODY), events, paths) is FailureReason.VLLM_UNREACHABLE


async def test_a_server_that_sleeps_already_fails_the_check_and_sleeps_on(
    server: SleepingServer, events: Events, paths: Paths
) -> None:
    server.asleep = True
    assert await failure_of_check(target(server.url), events, paths) is FailureReason.ALREADY_ASLEEP
    assert server.asleep


def with_token(serving: ServingTarget, paths: Paths, text: str) -> tuple[ServingTarget, Paths]:
    """The same with a control token in a mounted file."""
    file = paths.scratch / "token"
    file.write_text(text)
    return serving.model_copy(update={"has_control_token": True}), replace(paths, control_token=file)


async def test_a_lock_that_refuses_the_token_fails_the_check(
    events: Events, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "SECRET_SYNC_SECONDS", 0.1)
    monkeypatch.setattr(checks, "REFUSED_POLL_SECONDS", 0.05)
    with sleeping_server(locked=True) as server:
        assert await failure_of_check(target(server.url), events, paths) is FailureReason.CONTROL_REFUSED
        serving, moved = with_token(target(server.url), paths, "another token")
        assert await failure_of_check(serving, events, moved) is FailureReason.CONTROL_REFUSED


async def test_a_token_that_the_kubelet_brings_later_passes_the_check(
    events: Events, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "REFUSED_POLL_SECONDS", 0.02)
    with sleeping_server(locked=True) as server:
        server.gpu_uuids = []
        serving, moved = with_token(target(server.url), paths, "the old token")
        async with handover(serving, events, moved) as sleep:
            checking = asyncio.create_task(sleep.check(None))
            assert await asyncio.to_thread(server.refused.wait, 10)
            moved.control_token.write_text(TOKEN)
            await asyncio.wait_for(checking, 10)


async def test_a_token_that_changes_in_the_pause_does_not_keep_serving_asleep(events: Events, paths: Paths) -> None:
    with sleeping_server(locked=True) as server:
        server.gpu_uuids = []
        serving, moved = with_token(target(server.url), paths, TOKEN)
        async with handover(serving, events, moved) as sleep:
            await sleep.check(None)
            pause = sleep.paused()
            await pause.__aenter__()
            # The server has the new token already, and this pod's copy is the old one yet.
            moved.control_token.write_text("the old token")
            waking = asyncio.ensure_future(pause.__aexit__(None, None, None))
            assert await asyncio.to_thread(server.refused.wait, 10)
            moved.control_token.write_text(TOKEN)
            await asyncio.wait_for(waking, 10)
        assert not server.asleep


async def test_a_pod_without_the_volume_fails_the_check(server: SleepingServer, events: Events, paths: Paths) -> None:
    serving = target(server.url, storage_path=None)
    assert await failure_of_check(serving, events, paths) is FailureReason.INVALID_INPUT


async def test_another_gpu_than_vllm_s_fails_the_check(server: SleepingServer, events: Events, paths: Paths) -> None:
    server.gpu_uuids = ["GPU-a"]
    gpu = GpuNeed("GPU-b", 1, 1)
    assert await failure_of_check(target(server.url), events, paths, gpu) is FailureReason.GPU_MISMATCH


async def test_only_the_replica_that_holds_the_step_s_gpu_is_paused(
    server: SleepingServer, events: Events, paths: Paths
) -> None:
    server.gpu_uuids = ["GPU-a"]
    with sleeping_server() as other:
        other.gpu_uuids = ["GPU-b"]
        async with handover(target(server.url, other.url), events, paths) as sleep:
            await sleep.check(GpuNeed("GPU-b", 0, 0))
            async with sleep.paused():
                assert (server.asleep, other.asleep) == (False, True)


def gpu_with(free_mib: int, monkeypatch: pytest.MonkeyPatch) -> GpuNeed:
    """A GPU that has so much free while serving sleeps, and a step that wants 100 MiB of it, 50 at the least."""
    monkeypatch.setattr(sleep_handover, "gpu_of", lambda uuid: Gpu(uuid, 200 << 20, free_mib << 20))
    monkeypatch.setattr(sleep_handover, "_MEMORY_SETTLED_SECONDS", 0.2)
    monkeypatch.setattr(sleep_handover, "_MEMORY_TIMEOUT_SECONDS", 0.4)
    return GpuNeed("GPU-a", free_bytes=100 << 20, least_bytes=50 << 20)


@pytest.mark.parametrize(("free_mib", "at_once"), [(100, True), (60, False)])
async def test_a_serving_that_keeps_more_than_planned_leaves_room_for_a_smaller_step(
    free_mib: int,
    at_once: bool,
    server: SleepingServer,
    events: Events,
    paths: Paths,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with handover(target(server.url), events, paths) as sleep:
        await sleep.check(gpu_with(free_mib, monkeypatch))
        async with sleep.paused() as times:
            assert times.sleep is not None
            assert (times.sleep < 0.2) == at_once


async def test_a_gpu_without_room_for_the_smallest_step_fails_and_serving_wakes(
    server: SleepingServer, events: Events, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with handover(target(server.url), events, paths) as sleep:
        await sleep.check(gpu_with(40, monkeypatch))
        with pytest.raises(ServingError, match="the step needs 50 MiB") as caught:
            async with sleep.paused():
                raise AssertionError("the step must not run")
    assert caught.value.reason is FailureReason.GPU_MEMORY_NOT_FREED
    assert not server.asleep
