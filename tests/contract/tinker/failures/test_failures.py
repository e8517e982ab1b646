"""What the service can do to a step: each failure comes in time, says what it is, and can be told from the others."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from claas_bounded.waits import Deadline
from claas_contract.outcome import FailureReason
from claas_tinker_client.connection import CLOSE_SECONDS
from claas_trainer.errors import TrainerError
from tests.contract.tinker.failures.remote_runs import KEY, Work
from tests.peers.tinker.calls import BILLED, Operation
from tests.peers.tinker.failures import Answer, Cut, Fails, NeverComes, When
from tests.peers.tinker.server import TinkerPeer

pytestmark = pytest.mark.contract

SECONDS = 4.0
"""The deadline of a step here."""
MARGIN_SECONDS = 15.0
"""For a busy machine; the SDK by itself would try for minutes or hours."""
PARENT = "tinker://parent:train:0/weights/job-0-v0"


class Clock:
    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def peer(tinker_model: Path, clock: Clock) -> Iterator[TinkerPeer]:
    with TinkerPeer(tinker_model, api_key=KEY, long_poll_s=1.0, now=clock) as peer:
        yield peer


@pytest_asyncio.fixture
async def work(peer: TinkerPeer, tmp_path: Path) -> AsyncIterator[Work]:
    work = Work(peer, tmp_path)
    yield work
    peer.clear_failures()
    await work.close()


def unpaid_from_the_start(peer: TinkerPeer) -> None:
    peer.fail(BILLED, Answer(402))


def unpaid_at_the_step(peer: TinkerPeer) -> None:
    peer.fail(Operation.OPTIM_STEP, Answer(402))


def too_many_requests(peer: TinkerPeer) -> None:
    peer.fail([Operation.FORWARD, Operation.RETRIEVE], Answer(429))


def a_future_that_never_comes(peer: TinkerPeer) -> None:
    peer.fail(Operation.OPTIM_STEP, NeverComes())


def errors_for_ever(peer: TinkerPeer) -> None:
    peer.fail(Operation.RETRIEVE, Answer(503), of=Operation.OPTIM_STEP)


def gone_in_the_step(peer: TinkerPeer) -> None:
    peer.fail(Operation.OPTIM_STEP, Cut(), when=When.ACCEPTED)


def a_failed_request(peer: TinkerPeer) -> None:
    peer.fail(Operation.FORWARD_BACKWARD, Fails(message="out of GPUs"))


def a_session_that_has_ended(peer: TinkerPeer) -> None:
    peer.fail(Operation.RETRIEVE, Answer(410), of=Operation.FORWARD_BACKWARD)


def a_refused_request(peer: TinkerPeer) -> None:
    peer.fail(Operation.FORWARD, Answer(400))


@pytest.mark.parametrize(
    ("trouble", "reason", "said"),
    [
        (unpaid_from_the_start, FailureReason.BILLING_REQUIRED, "402.*payment"),
        (unpaid_at_the_step, FailureReason.BILLING_REQUIRED, "402.*payment"),
        (too_many_requests, FailureReason.RATE_LIMITED, "429.*fewer steps"),
        (a_future_that_never_comes, FailureReason.SERVICE_UNREACHABLE, r"had not done it after \d s"),
        (errors_for_ever, FailureReason.SERVICE_UNREACHABLE, "503"),
        (gone_in_the_step, FailureReason.SERVICE_UNREACHABLE, r"had not done it after \d s"),
        (a_failed_request, FailureReason.SERVICE_UNREACHABLE, "out of GPUs"),
        (a_session_that_has_ended, FailureReason.SERVICE_UNREACHABLE, "lost the request"),
        (a_refused_request, FailureReason.INVALID_INPUT, "400"),
    ],
)
async def test_a_failure_of_the_service_ends_the_step_in_time_and_says_what_it_is(
    trouble: Callable[[TinkerPeer], None], reason: FailureReason, said: str, peer: TinkerPeer, work: Work
) -> None:
    trouble(peer)
    began = time.monotonic()
    with pytest.raises(TrainerError, match=said) as failed:
        await work.attempt(1, SECONDS)
    assert time.monotonic() - began < SECONDS + MARGIN_SECONDS
    assert failed.value.reason is reason
    assert KEY not in str(failed.value)


@pytest.mark.parametrize(
    ("operation", "at"),
    [
        (Operation.FORWARD, 1),
        (Operation.FORWARD_BACKWARD, 1),
        (Operation.OPTIM_STEP, 1),
        (Operation.FORWARD, 2),
        (Operation.SAVE_STATE, 1),
        (Operation.SAVE_FOR_SAMPLER, 1),
    ],
)
async def test_a_run_that_has_failed_at_a_request_is_not_asked_the_same_again(
    operation: Operation, at: int, peer: TinkerPeer, work: Work
) -> None:
    peer.fail(operation, Fails(), first=at, times=1)
    with pytest.raises(TrainerError, match="failed: ordered failure"):
        await work.attempt(1)
    saved = await work.attempt(2)
    optimizer = peer.checkpoints.get(saved.state_path).snapshot.optimizer
    assert optimizer is not None
    assert {int(state["step"]) for state in optimizer["state"].values()} == {1}


@pytest.mark.parametrize("operation", [Operation.OPTIM_STEP, Operation.SAVE_STATE])
async def test_a_run_that_has_not_answered_two_attempts_is_given_up(
    operation: Operation, peer: TinkerPeer, work: Work
) -> None:
    peer.fail(operation, NeverComes(), times=1)
    for number in (1, 2):
        with pytest.raises(TrainerError, match="had not done it"):
            await work.attempt(number, 1.5)
    assert len({call.run for call in peer.called(operation)}) == 1
    assert (await work.attempt(3)).run not in {call.run for call in peer.calls if call.resent}


@pytest.mark.parametrize(
    ("key", "said"), [("tml-another", "401"), ("not-a-key", "begins with tml-"), ("tml-\u00fc", "can't be read")]
)
async def test_a_wrong_key_is_refused_at_once_and_not_told(key: str, said: str, work: Work) -> None:
    work.key = key
    with pytest.raises(TrainerError, match=said) as failed:
        await work.attempt(1)
    assert failed.value.reason is FailureReason.CREDENTIALS_REFUSED
    assert key not in str(failed.value)


async def test_a_parent_s_checkpoint_that_has_expired_is_told_from_a_lost_run(
    clock: Clock, peer: TinkerPeer, work: Work
) -> None:
    saved = await work.attempt(1)
    peer.checkpoints.set_ttl(saved.state_path, 3600)
    clock.now += timedelta(hours=2)
    work.state_path = saved.state_path
    with pytest.raises(TrainerError, match="checkpoint") as failed:
        await work.attempt(2)
    assert failed.value.reason is FailureReason.CHECKPOINT_EXPIRED


async def test_a_base_model_that_the_service_has_no_more_is_told_before_anything_is_asked_that_costs(
    peer: TinkerPeer, work: Work
) -> None:
    connection = work.connect()
    assert (await connection.check_model(peer.model_name, Deadline.after(5))).max_context_length
    peer.retire()
    peer.offer("another/model")
    with pytest.raises(Exception, match=f"ModelRetired.*{peer.model_name}.*has only another/model"):
        await connection.check_model(peer.model_name, Deadline.after(5))
    assert not [call for call in peer.calls if call.operation in BILLED - {Operation.CAPABILITIES}]


async def test_closing_ends_though_the_service_does_not_answer(
    peer: TinkerPeer, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("claas_tinker_client.connection.CLOSE_SECONDS", 1.0)
    connection = work.connect()
    await connection.session(Deadline.after(5))
    peer.fail(Operation.FINISH_SESSION, Answer(503))
    began = time.monotonic()
    await connection.close("success")
    assert time.monotonic() - began < CLOSE_SECONDS / 2


async def test_telemetry_is_never_sent(peer: TinkerPeer, work: Work) -> None:
    peer.fail(Operation.FORWARD, Answer(400))
    with pytest.raises(TrainerError):
        await work.attempt(1)
    assert peer.called(Operation.FORWARD)
    assert not peer.called(Operation.TELEMETRY)
