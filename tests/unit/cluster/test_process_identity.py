"""Processes are told apart by id and start time, and stopped only when both match."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cluster.errors import CommandError
from tests.cluster.host import process
from tests.cluster.host.process import ProcessIdentity, ProcessStat

STAT_TAIL = " ".join(["S", "7", *["0"] * 17, "4242", *["0"] * 30])


@pytest.mark.parametrize("name", ["etcd", "a b", "a) S 1 (b", "((("])
def test_a_stat_line_is_read_whatever_the_command_is_called(name: str) -> None:
    parsed = process.parse_stat(f"99 ({name}) {STAT_TAIL}")
    assert parsed == ProcessStat(state="S", parent_pid=7, start_ticks=4242)


def start_sleeper(
    tmp_path: Path, program: str = "import time; print('up', flush=True); time.sleep(60)"
) -> ProcessIdentity:
    return process.start(
        "sleeper",
        [sys.executable, "-c", program],
        log_path=tmp_path / "logs" / "sleeper.log",
        record_folder=tmp_path / "pids",
    )


def test_a_started_process_is_found_again_by_its_record_and_stopped(tmp_path: Path) -> None:
    started = start_sleeper(tmp_path)
    assert process.recorded(tmp_path / "pids") == [started]
    assert process.is_alive(started)
    process.stop(started, grace_seconds=5, record_folder=tmp_path / "pids")
    assert not process.is_alive(started)
    assert process.recorded(tmp_path / "pids") == []


def test_a_process_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    program = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    )
    started = start_sleeper(tmp_path, program)
    log = tmp_path / "logs" / "sleeper.log"
    while "up" not in log.read_text():
        assert process.is_alive(started)
    process.stop(started, grace_seconds=0.2)
    assert not process.is_alive(started)


def test_a_process_that_got_a_recycled_id_is_left_alone(tmp_path: Path) -> None:
    started = start_sleeper(tmp_path)
    predecessor = replace(started, start_ticks=started.start_ticks - 1)
    assert not process.is_alive(predecessor)
    process.send_signal(predecessor, signal.SIGKILL)
    process.stop(predecessor, grace_seconds=0.1)
    assert process.is_alive(started)
    process.stop(started, grace_seconds=5)


def test_a_zombie_counts_as_gone() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    stat = process.read_stat(child.pid)
    assert stat is not None
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not process.is_alive(ProcessIdentity("child", child.pid, stat.start_ticks))
    child.wait()


def test_a_record_cut_short_by_a_crash_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "etcd.json").write_text('{"name": "etcd", "pi')
    (tmp_path / "kubelet.json").write_text('{"name": "kubelet", "pid": 5, "start_ticks": 6}')
    assert process.recorded(tmp_path) == [ProcessIdentity("kubelet", 5, 6)]


@pytest.mark.parametrize(
    ("command", "timeout_seconds", "message"),
    [
        ([sys.executable, "-c", "import sys; sys.exit('no space left')"], 30, "no space left"),
        (["no-such-program-here"], 30, "not installed"),
        (["sleep", "30"], 0.1, "did not end within"),
    ],
)
def test_a_failed_command_says_which_and_why(command: list[str], timeout_seconds: float, message: str) -> None:
    with pytest.raises(CommandError, match=message):
        process.run(command, timeout_seconds=timeout_seconds)
