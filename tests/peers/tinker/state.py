"""Sessions, training runs and samplers of the account, and what is accepted for them."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from uuid import uuid4

from tinker.types import TrainingRun

from tests.peers.tinker.calls import Call
from tests.peers.tinker.checkpoints import Checkpoint, Checkpoints, RefusedError
from tests.peers.tinker.jobs import Cycle, Job, Queue, Result, start
from tests.peers.tinker.model.lora import LoraShape
from tests.peers.tinker.model.training import Trainee


@dataclass
class Session:
    id: str
    heartbeat: float
    finished: bool = False
    user_metadata: dict[str, str] = field(default_factory=dict)


@dataclass
class Run:
    """A training run; `trainee` is there once the request that makes it was done."""

    id: str
    session: Session
    base_model: str
    shape: LoraShape
    queue: Queue
    last_request: datetime
    user_metadata: dict[str, str] | None = None
    trainee: Trainee | None = None


@dataclass(frozen=True)
class Sampler:
    id: str
    session: Session
    base_model: str
    checkpoint: Checkpoint | None
    """None for the base model."""


class State:
    """Everything but the models. Safe to use from several threads."""

    def __init__(
        self, checkpoints: Checkpoints, cycle: Cycle, session_timeout_s: float | None, after: Callable[[Call], None]
    ) -> None:
        self.checkpoints = checkpoints
        self.runs: dict[str, Run] = {}
        self.samplers: dict[str, Sampler] = {}
        self.sessions: dict[str, Session] = {}
        self.jobs: dict[str, Job] = {}
        self.session_timeout_s = session_timeout_s
        self._cycle = cycle
        self._after = after
        self._lock = threading.RLock()

    def new_session(self, user_metadata: dict[str, str]) -> Session:
        with self._lock:
            session = Session(str(uuid4()), time.monotonic(), user_metadata=user_metadata)
            self.sessions[session.id] = session
            return session

    def heartbeat(self, session_id: str) -> None:
        self.live_session(session_id).heartbeat = time.monotonic()

    def live_session(self, session_id: str) -> Session:
        """404 for one that never was, 410 for one that ended."""
        session = self.sessions.get(session_id)
        if session is None:
            raise RefusedError(404, f"no session {session_id}")
        if self._ended(session):
            raise RefusedError(410, f"session {session_id} has ended")
        return session

    def live_run(self, run_id: str) -> Run:
        """410 for a run whose session has ended."""
        run = self.known_run(run_id)
        if self._ended(run.session):
            raise RefusedError(410, f"run {run_id} has ended with its session")
        return run

    def known_run(self, run_id: str) -> Run:
        if run_id not in self.runs:
            raise RefusedError(404, f"no training run {run_id}")
        return self.runs[run_id]

    def add_run(
        self, session: Session, number: int, base_model: str, shape: LoraShape, metadata: dict[str, str] | None
    ) -> Run:
        """The run that a session's client numbers so; the same one when asked again."""
        run_id = f"{session.id}:train:{number}"
        with self._lock:
            if run_id not in self.runs:
                queue = Queue(self._cycle, next_seq=0)
                self.runs[run_id] = Run(run_id, session, base_model, shape, queue, self.checkpoints.now(), metadata)
            return self.runs[run_id]

    def add_sampler(self, session: Session, number: int, base_model: str, checkpoint: Checkpoint | None) -> Sampler:
        sampler_id = f"{session.id}:sample:{number}"
        with self._lock:
            return self.samplers.setdefault(sampler_id, Sampler(sampler_id, session, base_model, checkpoint))

    def accept_for_run(self, run: Run, seq: int, call: Call, work: Callable[[], Result], *, never: bool) -> Job:
        """Queue a run's request, once for each sequence number: a resent one gets the job that it has."""
        key = f"{run.id}:{seq}"
        if key not in self.jobs and seq < run.queue.next_seq:
            raise RefusedError(400, f"sequence number {seq} of {run.id} has passed")
        job, is_new = self._job(key, call, work, never=never)
        if is_new:
            run.last_request = self.checkpoints.now()
            run.queue.put(seq, job)
        return job

    def accept(self, key: str, call: Call, work: Callable[[], Result], *, never: bool) -> Job:
        """Start work that waits for nothing else, once for each key."""
        job, is_new = self._job(key, call, work, never=never)
        if is_new:
            start(job)
        return job

    def _job(self, key: str, call: Call, work: Callable[[], Result], *, never: bool) -> tuple[Job, bool]:
        with self._lock:
            known = self.jobs.get(key)
            if known is None:
                call.request_id = key
                self.jobs[key] = Job(call, key, work, self._after, never)
                return self.jobs[key], True
        if known.call.operation is not call.operation:
            raise RefusedError(400, f"{key} was {known.call.operation} before, it is {call.operation} now")
        call.request_id, call.resent = key, True
        return known, False

    def describe(self, run: Run) -> TrainingRun:
        """What the REST routes tell of a run."""
        saved = self.checkpoints.list(run.id)
        last = {checkpoint.kind: checkpoint.message() for checkpoint in saved}
        return TrainingRun(
            training_run_id=run.id,
            base_model=run.base_model,
            model_owner="peer",
            is_lora=True,
            lora_rank=run.shape.rank,
            last_request_time=run.last_request,
            last_checkpoint=last.get("training"),
            last_sampler_checkpoint=last.get("sampler"),
            user_metadata=run.user_metadata,
        )

    def _ended(self, session: Session) -> bool:
        silent = time.monotonic() - session.heartbeat
        return session.finished or (self.session_timeout_s is not None and silent > self.session_timeout_s)


def trainee_of(run: Run) -> Trainee:
    """The run's weights, which the requests before this one have made."""
    if run.trainee is None:
        raise RuntimeError(f"{run.id} was never made")
    return run.trainee
