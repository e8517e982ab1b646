"""The supervisor with a stand-in worker that ends in every way, and a server that really sleeps."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import httpx
import pytest

from claas_contract.outcome import ExitCode, FailureReason, TrainerCommand
from claas_contract.progress import Progress
from claas_contract.result import TERMINATION_MESSAGE_LIMIT_BYTES, TrainerResult
from claas_crds.v1alpha1.engine import EngineName, EngineSpec, ModalEngineSpec, TinkerEngineSpec
from claas_crds.v1alpha1.step import JobPhase
from claas_crds.v1alpha1.version import VersionVerdict
from claas_trainer.paths import Paths
from claas_trainer.supervisor import supervisor
from claas_trainer.supervisor.supervisor import supervise
from claas_trainer.supervisor.time_limit import step_limit
from claas_trainer.transport import pod
from claas_trainer.transport.pod import PodChannel
from tests.unit.trainer.conftest import document
from tests.unit.trainer.sleeping_server import SleepingServer, sleeping_server

FAKE_WORKER = Path(__file__).with_name("fake_worker.py")
SUPERVISED = Path(__file__).with_name("supervised.py")


def run_supervisor(
    script: str, server: SleepingServer, paths: Paths, *, max_pause_seconds: int = 30, engine: str = "local"
) -> tuple[ExitCode, TrainerResult]:
    input_path = paths.scratch / "input.json"
    of = document(server.url, max_pause_seconds=max_pause_seconds)
    input_path.write_text(of.model_copy(update={"engine": EngineSpec.of(EngineName(engine))}).model_dump_json())
    command = [sys.executable, str(FAKE_WORKER), script, server.url]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        code = supervise(TrainerCommand.RUN, PodChannel(input_path, paths), paths, command)
    return code, TrainerResult.model_validate_json(paths.termination_message.read_text())


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("die", FailureReason.INTERNAL),
        ("announce,die", FailureReason.INTERNAL),
        ("announce,sleep,die", FailureReason.INTERNAL),
        ("announce,sleep,confirm,die", FailureReason.INTERNAL),
        ("announce,sleep,confirm,exit", FailureReason.INTERNAL),
        ("announce,sleep,confirm,half-a-line,die", FailureReason.INTERNAL),
    ],
)
def test_a_worker_that_dies_leaves_no_server_asleep_and_may_be_tried_again(
    script: str, reason: FailureReason, paths: Paths
) -> None:
    with sleeping_server() as server:
        started = time.monotonic()
        code, result = run_supervisor(script, server, paths)
        assert not server.asleep
    assert time.monotonic() - started < 10
    assert (code, result.succeeded, result.reason) == (ExitCode.RETRYABLE, False, reason)


@pytest.mark.parametrize(
    ("how", "engine", "reason"),
    [
        ("hang", "tinker", FailureReason.SERVICE_UNREACHABLE),
        ("stop", "tinker", FailureReason.SERVICE_UNREACHABLE),
        ("hang", "modal", FailureReason.STEP_TIMED_OUT),
    ],
)
def test_a_worker_that_an_engine_s_service_keeps_waiting_is_ended_whatever_it_is_doing(
    how: str, engine: str, reason: FailureReason, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_OVERTIME_SECONDS", 1.0 - TinkerEngineSpec().step_timeout_seconds)
    with sleeping_server() as server:
        started = time.monotonic()
        code, result = run_supervisor(how, server, paths, engine=engine)
    assert time.monotonic() - started < 1 + 4
    assert (code, result.reason) == (ExitCode.RETRYABLE, reason)
    assert f"spec.engine.{engine}.stepTimeoutSeconds" in result.message


@pytest.mark.parametrize(
    ("engine", "mode", "seconds"),
    [
        (EngineSpec(tinker=TinkerEngineSpec(step_timeout_seconds=90)), None, 90),
        (EngineSpec(tinker=TinkerEngineSpec(step_timeout_seconds=90)), "local", 90),
        (None, "tinker", TinkerEngineSpec().step_timeout_seconds),
        (EngineSpec(modal=ModalEngineSpec(step_timeout_seconds=95)), None, 95),
        (None, "modal", ModalEngineSpec().step_timeout_seconds),
        (EngineSpec.of(EngineName.LOCAL), "tinker", None),
        (None, None, None),
    ],
)
def test_a_step_by_a_service_has_a_time_in_which_it_must_end(
    engine: EngineSpec | None, mode: str | None, seconds: int | None
) -> None:
    of = document()
    of = of if engine is None else of.model_copy(update={"engine": engine})
    limit = step_limit(of, {"CLAAS_DISTILL_EXECUTION_MODE": mode} if mode else {})
    assert (limit.seconds if limit else None) == seconds


@pytest.mark.parametrize("how", ["hang", "stop"])
def test_a_worker_that_pauses_for_too_long_is_ended_and_the_server_woken(how: str, paths: Paths) -> None:
    with sleeping_server() as server:
        code, result = run_supervisor(f"announce,sleep,confirm,{how}", server, paths, max_pause_seconds=1)
        assert not server.asleep
        assert server.slept_at is not None
        assert server.woken_at is not None
        # However long the worker took to start.
        assert server.woken_at - server.slept_at < 1 + 3
    # The same step would take as long again, and pause serving for it.
    assert code is ExitCode.PERMANENT
    assert result.reason is FailureReason.MAX_PAUSE_EXCEEDED
    assert "maxPauseSeconds" in result.message


def test_a_worker_that_resumed_in_time_may_go_on_for_longer_than_the_longest_pause(paths: Paths) -> None:
    with sleeping_server() as server:
        script = "announce,sleep,confirm,wake,linger,publish,finish"
        code, result = run_supervisor(script, server, paths, max_pause_seconds=1)
        assert server.calls.count("POST /wake_up") == 1
    assert code is ExitCode.SUCCEEDED
    assert result.swapped_pods == ["vllm-0"]


def test_a_line_that_is_too_long_costs_no_later_event(paths: Paths) -> None:
    with sleeping_server() as server:
        code, _ = run_supervisor("endless-line,announce,sleep,confirm,wake,publish,finish", server, paths)
    assert code is ExitCode.SUCCEEDED


def test_a_server_that_fails_to_wake_at_first_is_tried_again(paths: Paths) -> None:
    with sleeping_server(wake_failures=2) as server:
        run_supervisor("announce,sleep,confirm,die", server, paths)
        assert not server.asleep


def test_a_server_that_was_never_announced_is_left_alone(paths: Paths) -> None:
    with sleeping_server() as server:
        server.asleep = True
        run_supervisor("die", server, paths)
        assert server.asleep
        assert server.calls == []


def test_a_worker_that_published_and_then_died_has_succeeded_without_a_swap(paths: Paths) -> None:
    with sleeping_server() as server:
        code, result = run_supervisor("announce,sleep,confirm,wake,publish,die", server, paths)
    assert code is ExitCode.SUCCEEDED
    assert result.version is not None
    assert (result.version.number, result.swapped_pods) == (3, [])


def test_a_worker_that_died_after_serving_had_refused_its_version_has_failed_with_it(paths: Paths) -> None:
    with sleeping_server() as server:
        code, result = run_supervisor("publish,refused,die", server, paths)
    assert (code, result.reason) == (ExitCode.PERMANENT, FailureReason.VERSION_REJECTED)
    assert result.version is not None
    assert (result.version.number, result.version.verdict) == (3, VersionVerdict.REJECTED)


@pytest.mark.parametrize("how", ["hang", "stop"])
@pytest.mark.parametrize("death", ["process", "engine"])
def test_a_step_beside_a_server_that_is_lost_is_ended_within_two_seconds_and_may_be_tried_again(
    how: str, death: str, paths: Paths
) -> None:
    with sleeping_server() as server:
        lost_at: list[float] = []

        def die() -> None:
            deadline = time.monotonic() + 30
            while "GET /health" not in server.calls and time.monotonic() < deadline:
                time.sleep(0.02)
            lost_at.append(time.monotonic())
            if death == "engine":
                server.engine_dead = True
            else:
                server.stop()

        killer = threading.Thread(target=die)
        killer.start()
        code, result = run_supervisor(f"share,{how}", server, paths)
        ended = time.monotonic()
        killer.join()
        assert ended - lost_at[0] < 2.0
    assert code is ExitCode.RETRYABLE
    assert result.reason is FailureReason.SERVING_LOST
    assert "vllm-0" in result.message


def test_a_worker_that_falls_with_the_server_beside_it_says_that_the_server_was_lost(paths: Paths) -> None:
    with sleeping_server() as server:
        server.engine_dead = True
        code, result = run_supervisor("share,die", server, paths)
    assert (code, result.reason) == (ExitCode.RETRYABLE, FailureReason.SERVING_LOST)


@pytest.mark.parametrize("script", ["share,unshare,linger,finish", "linger,finish"])
def test_a_server_whose_memory_is_not_used_may_go(script: str, paths: Paths) -> None:
    with sleeping_server() as server:
        server.engine_dead = True
        code, _ = run_supervisor(script, server, paths)
    assert code is ExitCode.SUCCEEDED


def test_a_server_that_is_held_up_is_not_lost(paths: Paths) -> None:
    with sleeping_server() as server, server.lock:
        code, _ = run_supervisor("share,linger,linger,unshare,finish", server, paths)
    assert code is ExitCode.SUCCEEDED


def test_an_input_that_cannot_be_read_fails_at_once_and_names_the_field(paths: Paths) -> None:
    input_path = paths.scratch / "input.json"
    input_path.write_text('{"adapter": {"namespace": "n"}}')
    assert supervise(TrainerCommand.RUN, PodChannel(input_path, paths), paths, ["false"]) is ExitCode.PERMANENT
    result = TrainerResult.model_validate_json(paths.termination_message.read_text())
    assert result.reason is FailureReason.INVALID_INPUT
    assert "adapter.name" in result.message


def test_a_worker_that_cannot_be_started_is_told_to_the_operator_all_the_same(paths: Paths) -> None:
    input_path = paths.scratch / "input.json"
    input_path.write_text(document().model_dump_json())
    assert (
        supervise(TrainerCommand.RUN, PodChannel(input_path, paths), paths, [str(paths.scratch / "absent")])
        is ExitCode.RETRYABLE
    )
    result = TrainerResult.model_validate_json(paths.termination_message.read_text())
    assert (result.reason, result.message) == (
        FailureReason.INTERNAL,
        "FileNotFoundError in the trainer; its log says where",
    )


def _process(script: str, server: SleepingServer, paths: Paths) -> subprocess.Popen[bytes]:
    input_path = paths.scratch / "input.json"
    input_path.write_text(document(server.url).model_dump_json())
    variables = {
        "storage": "CLAAS_STORAGE_DIRECTORY",
        "scratch": "CLAAS_SCRATCH_DIRECTORY",
        "termination_message": "CLAAS_TERMINATION_MESSAGE_FILE",
        "progress_port": "CLAAS_PROGRESS_PORT",
    }
    environment = dict(os.environ) | {name: str(asdict(paths)[field]) for field, name in variables.items()}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, str(SUPERVISED), str(input_path), str(FAKE_WORKER), script, server.url]
    return subprocess.Popen(command, env=environment)


def _wait_until_training(paths: Paths) -> Progress:
    deadline = time.monotonic() + 30
    # One client: each reads all of the machine's certificates.
    with httpx.Client(timeout=2, trust_env=False) as client:
        while time.monotonic() < deadline:
            try:
                answer = client.get(f"http://127.0.0.1:{paths.progress_port}/progress")
            except httpx.TransportError:
                time.sleep(0.05)
                continue
            progress = Progress.model_validate_json(answer.content)
            if progress.phase is JobPhase.TRAINING:
                return progress
            time.sleep(0.05)
    raise AssertionError("the worker never reached the step")


def test_a_pod_that_is_told_to_end_wakes_serving_first_and_says_interrupted(paths: Paths) -> None:
    with sleeping_server() as server:
        process = _process("announce,sleep,confirm,hang", server, paths)
        try:
            _wait_until_training(paths)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=15) == ExitCode.RETRYABLE
        finally:
            process.kill()
        assert not server.asleep
    result = TrainerResult.model_validate_json(paths.termination_message.read_text())
    assert result.reason is FailureReason.INTERRUPTED


def test_a_pod_that_is_told_to_end_while_its_worker_starts_ends_at_once(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    input_path = paths.scratch / "input.json"
    input_path.write_text(document().model_dump_json())

    async def told_to_end_meanwhile(*_: object) -> asyncio.Server:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.05)
        raise OSError

    monkeypatch.setattr(pod, "serve_progress", told_to_end_meanwhile)
    started = time.monotonic()
    # A worker that says nothing at all, as one does while it imports.
    code = supervise(TrainerCommand.RUN, PodChannel(input_path, paths), paths, ["sleep", "20"])
    assert time.monotonic() - started < 10
    result = TrainerResult.model_validate_json(paths.termination_message.read_text())
    assert (code, result.reason) == (ExitCode.RETRYABLE, FailureReason.INTERRUPTED)


@pytest.mark.parametrize(
    "module", ["claas_contract.input", "claas_trainer.paths", "claas_trainer.supervisor.supervisor"]
)
def test_a_pod_that_is_told_to_end_during_its_imports_says_interrupted(module: str, paths: Paths) -> None:
    # A finder that is asked for the module first, and sends the signal while it is being imported.
    program = (
        "import os, runpy, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r} and signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "sys.argv = ['claas_trainer', 'run']\n"
        "runpy.run_module('claas_trainer', run_name='__main__')\n"
    )
    environment = dict(os.environ) | {"CLAAS_TERMINATION_MESSAGE_FILE": str(paths.termination_message)}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", program], env=environment, timeout=30)
    assert done.returncode == ExitCode.RETRYABLE
    result = TrainerResult.model_validate_json(paths.termination_message.read_text())
    assert result.reason is FailureReason.INTERRUPTED


def test_a_watch_over_servers_that_fails_once_goes_on(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(supervisor, "WATCH_SECONDS", 0.05)

    async def gone(urls: Iterable[str], tls: object) -> list[str]:
        asked.append(len(list(urls)))
        if len(asked) == 1:
            raise KeyError("nobody thought of it")
        return []

    monkeypatch.setattr(supervisor, "gone", gone)
    with sleeping_server() as server:
        code, _ = run_supervisor("share,linger,unshare,finish", server, paths)
    assert code is ExitCode.SUCCEEDED
    assert len(asked) > 1


def test_progress_answers_while_the_worker_is_stopped_and_nothing_else_does(paths: Paths) -> None:
    with sleeping_server() as server:
        process = _process("announce,sleep,confirm,stop", server, paths)
        try:
            progress = _wait_until_training(paths)
            assert progress.detail == "micro-batch 3 of 8"
            assert progress.paused_since is not None
            base = f"http://127.0.0.1:{paths.progress_port}"
            with httpx.Client(timeout=2, trust_env=False) as client:
                assert client.get(f"{base}/").status_code == 404
                assert client.post(f"{base}/progress").status_code == 405
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=15)
        assert not server.asleep


def test_a_termination_message_is_never_longer_than_the_kubelet_reads() -> None:
    result = TrainerResult(
        succeeded=False, reason=FailureReason.INTERNAL, message="ä" * 9000, swapped_pods=["p"] * 99
    )
    assert len(result.to_termination_message().encode()) <= TERMINATION_MESSAGE_LIMIT_BYTES
    assert TrainerResult.model_validate_json(result.to_termination_message()).reason is FailureReason.INTERNAL


def test_a_worker_that_has_reported_is_not_logged_as_one_that_a_signal_ended(
    paths: Paths, capfd: pytest.CaptureFixture[str]
) -> None:
    with sleeping_server() as server:
        code, _ = run_supervisor("publish,finish", server, paths)
    assert code is ExitCode.SUCCEEDED
    (ended,) = [line for line in capfd.readouterr().out.splitlines() if '"worker-ended"' in line]
    assert json.loads(ended)["code"] in (None, 0)
