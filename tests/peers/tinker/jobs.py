"""Work that was accepted and is done in the background: one result for each run and sequence number."""

import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from pydantic import BaseModel as Message
from tinker.types import RequestErrorCategory, RequestFailedResponse

from tests.peers.tinker.calls import Call

Result = bytes | Message
"""A protobuf message's bytes, or what is sent as JSON."""


class RequestFailedError(Exception):
    """The work can't be done; the client learns so when it asks for the result."""

    def __init__(self, message: str, category: RequestErrorCategory = RequestErrorCategory.User) -> None:
        super().__init__(message)
        self.response = RequestFailedResponse(error=message, category=category)


@dataclass
class Job:
    """One accepted request."""

    call: Call
    request_id: str
    work: Callable[[], Result]
    after: Callable[[Call], None]
    """Called with the work done and the result not yet to be had."""
    never: bool = False
    result: Future[Result] = field(default_factory=Future)

    def run(self) -> None:
        """Do the work. Errors of any kind become the result."""
        try:
            result = self.work()
        except RequestFailedError as failed:
            result = failed.response
        except Exception as error:  # noqa: BLE001 (a client is told of every failure)
            result = RequestFailedError(f"{type(error).__name__}: {error}", RequestErrorCategory.Server).response
        try:
            self.after(self.call)
        finally:
            self.result.set_result(result)


@dataclass(frozen=True)
class Cycle:
    """The service's clock: runs start what is queued at each tick. Zero seconds for at once."""

    seconds: float = 0.0

    def wait(self) -> None:
        if self.seconds:
            time.sleep(self.seconds - time.monotonic() % self.seconds)


class Queue:
    """A run's requests, done in the order of their sequence numbers, whatever order they arrive in."""

    def __init__(self, cycle: Cycle, *, next_seq: int) -> None:
        self._cycle = cycle
        self._next = next_seq
        self._waiting: dict[int, Job] = {}
        self._busy = False
        self._lock = threading.Lock()

    @property
    def next_seq(self) -> int:
        """The sequence number that is done next."""
        return self._next

    def put(self, seq: int, job: Job) -> None:
        with self._lock:
            self._waiting[seq] = job
            if self._busy or self._next not in self._waiting:
                return
            self._busy = True
        threading.Thread(target=self._work, name=f"tinker-peer {job.request_id}", daemon=True).start()

    def _work(self) -> None:
        self._cycle.wait()
        while True:
            with self._lock:
                job = self._waiting.pop(self._next, None)
                if job is None:
                    self._busy = False
                    return
                if job.never:
                    return
                self._next += 1
            try:
                job.run()
            except Exception:  # noqa: BLE001 (what a test ordered has failed; the run goes on)
                traceback.print_exc()


def start(job: Job) -> None:
    """Do work that waits for nothing else."""
    if not job.never:
        threading.Thread(target=job.run, name=f"tinker-peer {job.request_id}", daemon=True).start()
