"""Process 1 of the trainer pod.

It starts the worker, serves its progress, enforces maxPauseSeconds and stepTimeoutSeconds, and writes the result. It
never imports PyTorch, so it can act while the worker is deep in C code. However the worker ends, the supervisor wakes
the servers that the worker announced to pause; the operator is the next line of defence. While the worker uses memory
of a server, the supervisor watches that server and ends the worker when the server ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Sequence

from claas_contract.input import TrainerInput
from claas_contract.outcome import ExitCode, FailureReason, TrainerCommand
from claas_contract.result import TrainerResult
from claas_trainer.errors import TrainerError
from claas_trainer.logs import log, log_exception
from claas_trainer.messages.events import decode
from claas_trainer.messages.result import exit_code, failure, internal_failure, published_without_swap
from claas_trainer.messages.task import worker_command
from claas_trainer.paths import Paths
from claas_trainer.serving.liveness import WATCH_SECONDS, gone
from claas_trainer.serving.pods import trust_in
from claas_trainer.supervisor.cgroup_memory import oom_kills
from claas_trainer.supervisor.environment import worker_environment
from claas_trainer.supervisor.time_limit import StepLimit, step_limit
from claas_trainer.supervisor.waking import wake_announced
from claas_trainer.supervisor.watch import WorkerState
from claas_trainer.transport.pod import Channel

_LINE_LIMIT_BYTES = 1024 * 1024
_KILL_TIMEOUT_SECONDS = 15.0
_LAST_EVENTS_TIMEOUT_SECONDS = 1.0
_OVERTIME_SECONDS = 60.0
"""Time that a worker has beyond `stepTimeoutSeconds`, which it observes itself: to close, publish and report."""


def supervise(task: TrainerCommand, channel: Channel, paths: Paths, command: Sequence[str] | None = None) -> ExitCode:
    """Run the task in a worker process to its end; returns the pod's exit code. `command` replaces the worker's
    command line in tests; its file descriptor for events is 3 then.
    """
    try:
        document = channel.read_input()
    except TrainerError as error:
        result = failure(error)
    else:
        try:
            result = asyncio.run(_Supervisor(task, channel, document, paths, command).run())
        except Exception as error:  # noqa: BLE001 - the edge of the process: every error is reported to the operator
            log_exception("unexpected", error)
            result = internal_failure(error)
    log("result", succeeded=result.succeeded, reason=result.reason.value if result.reason else None)
    channel.tell_result(result)
    return exit_code(result)


class _Supervisor:
    def __init__(
        self,
        task: TrainerCommand,
        channel: Channel,
        document: TrainerInput,
        paths: Paths,
        command: Sequence[str] | None,
    ) -> None:
        self._task = task
        self._channel = channel
        self._document = document
        self._paths = paths
        self._command = command
        self._watch = WorkerState(time.monotonic)
        self._news = asyncio.Event()
        self._told_to_end = False
        self._lost: list[str] = []
        """Pods that ended while the worker used their memory."""
        self._limit = step_limit(document)
        self._stuck_at: float | None = None
        """When a worker that waits for an engine's service is ended, in monotonic seconds."""
        self._stuck: StepLimit | None = None
        """The limit that the worker exceeded."""

    async def run(self) -> TrainerResult:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        kills_before = oom_kills()
        reading, writing = os.pipe()
        process = await self._start(writing)
        os.close(writing)
        if self._limit is not None:
            self._stuck_at = time.monotonic() + self._limit.seconds + _OVERTIME_SECONDS
        server = await self._channel.tell_progress(self._watch.progress)
        events = asyncio.create_task(self._read_events(reading))
        watching = asyncio.create_task(self._watch_shared())
        overdue = await self._wait(process)
        code = process.returncode
        await _kill(process)
        watching.cancel()
        if self._watch.result is None and not self._lost:
            # A worker may crash over the lost memory before the loss is noticed.
            self._lost = await self._missing()
        # The pipe closes with the worker, unless a child of the worker holds it open.
        await asyncio.wait({events}, timeout=_LAST_EVENTS_TIMEOUT_SECONDS)
        events.cancel()
        log(
            "worker-ended",
            # The code of a worker that ended by itself; a worker that has reported its result is killed here.
            code=code,
            killed=code is None,
            reported=self._watch.result is not None,
            paused=len(self._watch.announced),
        )
        asleep = await wake_announced(self._document.serving, self._paths, self._watch)
        if server is not None:
            server.close()
        return self._result(process.returncode, overdue, asleep, oom_kills() > kills_before)

    async def _start(self, report_file_descriptor: int) -> asyncio.subprocess.Process:
        command = self._command or worker_command(self._task, self._channel.input_path, report_file_descriptor)
        environment = worker_environment(os.environ, self._paths, offline=self._document.model.repository is None)
        environment["CLAAS_REPORT_TO"] = str(report_file_descriptor)
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=(report_file_descriptor,),
            env=environment,
            start_new_session=True,
        )

    def _end(self) -> None:
        self._told_to_end = True
        self._news.set()

    async def _read_events(self, file_descriptor: int) -> None:
        reader = asyncio.StreamReader(limit=_LINE_LIMIT_BYTES)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(file_descriptor, "rb", 0)
        )
        try:
            while True:
                try:
                    line = await reader.readline()
                    if not line:
                        return
                    self._watch.take(decode(line))
                except ValueError:
                    # An incomplete last line of a killed worker, or a line that is too long. Reading goes on, because
                    # otherwise the next pause would be missed and the worker would block on a full pipe.
                    log("event-not-readable")
                self._news.set()
        finally:
            transport.close()

    async def _watch_shared(self) -> None:
        """Watch the servers whose memory the worker uses, until one of them ends."""
        while not self._lost:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                self._lost = await self._missing()
            except Exception as error:  # noqa: BLE001 - nothing else watches: go on after any error
                log_exception("watching-failed", error)
        log("serving-lost", pods=", ".join(self._lost))
        self._news.set()

    async def _missing(self) -> list[str]:
        """Pods that have ended while the worker uses their memory."""
        serving = self._document.serving
        if serving is None or not self._watch.shared:
            return []
        missing = await gone(tuple(self._watch.shared), trust_in(serving, self._paths))
        # Ignore servers that the worker stopped using during the check.
        return [self._watch.shared[url] for url in missing if url in self._watch.shared]

    async def _wait(self, process: asyncio.subprocess.Process) -> bool:
        """Wait until the worker ends or has to be ended, or a server is lost, or the pause is too long; True for the
        last."""
        ended = asyncio.create_task(process.wait())
        try:
            while True:
                # Clear first: anything that happens from here on is seen below or ends the wait.
                self._news.clear()
                if ended.done() or self._told_to_end or self._lost or self._watch.result is not None:
                    return False
                left = self._pause_left()
                if left is not None and left <= 0:
                    log("max-pause-exceeded", max_pause_seconds=self._max_pause_seconds)
                    return True
                patience = self._patience_left()
                if patience is not None and patience <= 0:
                    self._stuck = self._limit
                    log("step-timeout-exceeded", step_timeout_seconds=self._limit.seconds if self._limit else None)
                    return False
                news = asyncio.create_task(self._news.wait())
                soonest = min((seconds for seconds in (left, patience) if seconds is not None), default=None)
                try:
                    await asyncio.wait({ended, news}, timeout=soonest, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    news.cancel()
        finally:
            ended.cancel()

    @property
    def _max_pause_seconds(self) -> int:
        return self._document.serving.max_pause_seconds if self._document.serving else 0

    def _pause_left(self) -> float | None:
        if self._watch.paused_at is None:
            return None
        return max(0.0, self._watch.paused_at + self._max_pause_seconds - time.monotonic())

    def _patience_left(self) -> float | None:
        return None if self._stuck_at is None else max(0.0, self._stuck_at - time.monotonic())

    def _result(self, code: int | None, overdue: bool, asleep: Sequence[str], out_of_memory: bool) -> TrainerResult:
        result = self._watch.result
        if result is None and self._watch.published is not None:
            # The version is published: the step must not be repeated, and the operator loads the version.
            number = self._watch.published.number
            result = published_without_swap(
                self._watch.published, f"version {number} is published; the trainer ended before it was in service"
            )
        if result is None:
            result = self._unfinished(code, overdue, out_of_memory)
        if not asleep:
            return result
        still = f"; still asleep: {', '.join(asleep)}"
        return result.model_copy(update={"message": result.message + still})

    def _unfinished(self, code: int | None, overdue: bool, out_of_memory: bool) -> TrainerResult:
        if overdue:
            reason = FailureReason.MAX_PAUSE_EXCEEDED
            message = (
                f"serving was paused for {self._max_pause_seconds} s (maxPauseSeconds) and the step was not done; it"
                " was ended and serving woken; give smaller batches or a larger maxPauseSeconds"
            )
        elif self._lost:
            reason = FailureReason.SERVING_LOST
            message = (
                f"pod {', '.join(self._lost)}: vLLM ended during the step, which used its weights; the step was"
                " ended, and nothing was published"
            )
        elif self._stuck is not None:
            reason = self._stuck.reason
            message = (
                f"the step took longer than {self._stuck.seconds} s ({self._stuck.field}) in phase"
                f" {self._watch.phase.value} and did not end by itself; it was ended, and nothing was published"
            )
        elif self._told_to_end:
            reason = FailureReason.INTERRUPTED
            message = f"the pod was asked to end in phase {self._watch.phase.value}; nothing was published"
        elif out_of_memory:
            reason = FailureReason.OUT_OF_MEMORY
            message = "the kernel ended the step because the container's memory ran out; raise its memory limit"
        else:
            reason = FailureReason.INTERNAL
            how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
            message = f"the worker ended with {how} in phase {self._watch.phase.value} without a result; see its log"
        return TrainerResult(succeeded=False, reason=reason, message=message)


async def _kill(process: asyncio.subprocess.Process) -> None:
    """Kill the worker and its children, and wait until it is gone. Also after its result is in, to free its
    memory."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        await asyncio.wait_for(process.wait(), _KILL_TIMEOUT_SECONDS)
    except TimeoutError:
        log("worker-not-gone", seconds=_KILL_TIMEOUT_SECONDS)
