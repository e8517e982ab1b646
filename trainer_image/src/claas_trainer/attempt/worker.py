"""The worker process: takes the step and reports to its supervisor, which never imports PyTorch itself."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Coroutine
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from claas_contract.outcome import TrainerCommand
from claas_contract.result import TrainerResult
from claas_trainer.errors import TrainerError
from claas_trainer.logs import Field, log, log_exception
from claas_trainer.messages.events import Finished, Reporter
from claas_trainer.messages.result import failure, internal_failure
from claas_trainer.paths import Paths
from claas_trainer.transport.pod import read_input

_PR_SET_PDEATHSIG = 1
_UMASK = 0o002


def work(task: TrainerCommand, input_path: Path, report_file_descriptor: int, supervisor: int) -> int:
    """Do the task and report its result; the exit code only says whether the report succeeded."""
    _die_with(supervisor)
    os.umask(_UMASK)
    _volunteer_for_oom_kill()
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    sys.unraisablehook = _log_unraisable
    reporter = Reporter(report_file_descriptor)
    result = attempt(task, input_path, Paths.from_environment(), reporter)
    fields: dict[str, Field] = {"succeeded": result.succeeded, "message": result.message}
    log("finished", reason=result.reason.value if result.reason else None, **fields)
    reporter.send(Finished(result=result))
    return 0


def attempt(task: TrainerCommand, input_path: Path, paths: Paths, reporter: Reporter) -> TrainerResult:
    """Do the task in this process; every failure becomes a result."""
    try:
        document = read_input(input_path)
        if task is TrainerCommand.INIT:
            from claas_trainer.attempt.initialise import initialise

            return initialise(document, paths, reporter)
        if task is TrainerCommand.RECOVER:
            from claas_trainer.attempt.recover import recover

            return recover(document, paths, reporter)
        from claas_trainer.attempt.run import run

        began = datetime.now(UTC)
        result = asyncio.run(_quietly(run(document, paths, reporter)))
        return result.model_copy(update={"began": began})
    except TrainerError as error:
        return failure(error)
    except Exception as error:  # noqa: BLE001 - the edge of the process: every error is reported to the supervisor
        log_exception("unexpected", error)
        return internal_failure(error)


async def _quietly(attempt: Coroutine[None, None, TrainerResult]) -> TrainerResult:
    asyncio.get_running_loop().set_exception_handler(_log_from_loop)
    return await attempt


def _log_from_loop(loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    error = context.get("exception")
    if isinstance(error, BaseException):
        log_exception("unexpected", error)


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    log_exception("unexpected", error)


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None:
        log_exception("unexpected", args.exc_value)


def _log_unraisable(args: sys.UnraisableHookArgs) -> None:
    if args.exc_value is not None:
        log_exception("unexpected", args.exc_value)


def _die_with(supervisor: int) -> None:
    """Ask the kernel to kill this process when the supervisor dies, so that no step runs unwatched."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:
        sys.exit(1)


def _volunteer_for_oom_kill() -> None:
    """Ask the kernel to kill this process rather than the supervisor when memory runs out."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    except OSError as error:
        log("oom-score-unchanged", error=type(error).__name__)
