"""What the platform can do to a step: each failure comes in time, says what it is, leaves the old version, and the
next attempt makes the version once."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from grpclib.const import Status

from claas_contract.outcome import FailureReason
from claas_contract.result import TrainerResult
from claas_crds.v1alpha1.engine import StateKeeping
from claas_trainer.attempt.initialise import initialise
from claas_trainer.attempt.run import run
from claas_trainer.errors import TrainerError
from claas_trainer.messages.events import Reporter
from tests.contract.modal.app.deployed import APP
from tests.contract.modal.trainer_site import ModalAdapter, calls_since
from tests.peers.modal.failures import (
    COMMIT_REFUSED,
    OUT_OF_ORDER,
    SPENT,
    THROTTLED,
    UNPAID,
    Cut,
    EndCall,
    Fate,
    KillContainer,
    Refuse,
    Slow,
    When,
)
from tests.peers.modal.server import TOKEN_SECRET, ModalPeer
from tests.unit.trainer.conftest import reporter

__all__ = ["reporter"]

pytestmark = pytest.mark.contract

SECONDS = 8.0
"""The deadline of a step that is ended by it."""
MARGIN_SECONDS = 25.0
"""For a busy machine."""
REVOKED = Refuse(Status.UNAUTHENTICATED, "token revoked")


@pytest.fixture
def adapter(
    modal_peer: ModalPeer, modal_model: Path, tmp_path: Path, reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ModalAdapter]:
    """With version 0."""
    monkeypatch.setenv("MODAL_SERVER_URL", modal_peer.url)
    monkeypatch.setenv("MODAL_MAX_THROTTLE_WAIT", "2")
    made = ModalAdapter(modal_peer, modal_model, tmp_path, uid=f"adapter-{len(modal_peer.rpcs)}")
    initialise(made.document(0), made.paths, reporter)
    made.jobs = 1
    yield made
    modal_peer.clear_failures()
    modal_peer.come_back()


def wait_until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


async def attempt(adapter: ModalAdapter, reporter: Reporter, number: int = 1) -> TrainerResult:
    return await run(adapter.document(number), adapter.paths, reporter)


def unpaid(adapter: ModalAdapter) -> None:
    adapter.peer.fail("FunctionMap", UNPAID)


def spent(adapter: ModalAdapter) -> None:
    adapter.peer.fail("FunctionMap", SPENT)


def throttled(adapter: ModalAdapter) -> None:
    adapter.peer.fail("FunctionMap", THROTTLED)


def another_app(adapter: ModalAdapter) -> None:
    adapter.spec = adapter.spec.model_copy(update={"app": "another-app"})


def another_token(adapter: ModalAdapter) -> None:
    adapter.give_token("as-another")


def no_token(adapter: ModalAdapter) -> None:
    (adapter.root / "token" / "token-secret").unlink()


def lost(adapter: ModalAdapter) -> None:
    adapter.peer.fail("FunctionMap", EndCall(Fate.LOST))


def expired(adapter: ModalAdapter) -> None:
    adapter.peer.fail("FunctionMap", EndCall(Fate.EXPIRED))


def unknown(adapter: ModalAdapter) -> None:
    adapter.peer.fail("FunctionMap", EndCall(Fate.UNKNOWN))


def timed_out_there(adapter: ModalAdapter) -> None:
    adapter.peer.fail("FunctionMap", EndCall(Fate.TIMED_OUT))


def commit_refused(adapter: ModalAdapter) -> None:
    adapter.peer.fail("VolumeCommit", COMMIT_REFUSED)


def too_slow(adapter: ModalAdapter) -> None:
    adapter.spec = adapter.spec.model_copy(update={"step_timeout_seconds": SECONDS})
    adapter.peer.fail("FunctionPutOutputs", Slow(600))


def out_of_order(adapter: ModalAdapter) -> None:
    adapter.spec = adapter.spec.model_copy(update={"step_timeout_seconds": SECONDS})
    adapter.peer.fail("FunctionMap", OUT_OF_ORDER)


def gone(adapter: ModalAdapter) -> None:
    adapter.spec = adapter.spec.model_copy(update={"step_timeout_seconds": SECONDS})
    adapter.peer.cut()


@pytest.mark.parametrize(
    ("trouble", "reason", "said"),
    [
        (another_token, FailureReason.CREDENTIALS_REFUSED, "tokenSecretRef"),
        (no_token, FailureReason.CREDENTIALS_REFUSED, "token-secret can't be read"),
        (another_app, FailureReason.APP_NOT_DEPLOYED, "another-app.*modal deploy"),
        (unpaid, FailureReason.BILLING_REQUIRED, "payment method"),
        (spent, FailureReason.BILLING_REQUIRED, "spend limit"),
        (throttled, FailureReason.RATE_LIMITED, "rate limit"),
        (lost, FailureReason.CALL_LOST, "lost the container"),
        (expired, FailureReason.CALL_LOST, "keeps the result no longer"),
        (unknown, FailureReason.CALL_LOST, "did not find it"),
        (timed_out_there, FailureReason.STEP_TIMED_OUT, "time limit"),
        (too_slow, FailureReason.STEP_TIMED_OUT, r"stepTimeoutSeconds"),
        (commit_refused, FailureReason.STORAGE_FAILED, "commit"),
        (out_of_order, FailureReason.SERVICE_UNREACHABLE, "temporarily unavailable|had not done it"),
        (gone, FailureReason.SERVICE_UNREACHABLE, "had not done it|there was no answer"),
    ],
)
async def test_a_failure_ends_the_attempt_in_time_says_what_it_is_and_the_next_one_makes_the_version_once(
    trouble: Callable[[ModalAdapter], None],
    reason: FailureReason,
    said: str,
    adapter: ModalAdapter,
    reporter: Reporter,
) -> None:
    spec = adapter.spec
    trouble(adapter)
    began = time.monotonic()
    with pytest.raises(TrainerError) as failed:
        await attempt(adapter, reporter)
    assert time.monotonic() - began < SECONDS + MARGIN_SECONDS
    assert failed.value.reason is reason, failed.value.message
    assert re.search(said, failed.value.message), failed.value.message
    assert TOKEN_SECRET not in failed.value.message
    assert "as-another" not in failed.value.message
    assert adapter.store.numbers() == [0]
    adapter.peer.clear_failures()
    adapter.peer.come_back()
    adapter.spec = spec
    adapter.give_token()
    result = await attempt(adapter, reporter, 2)
    assert result.version is not None
    assert adapter.store.numbers() == [0, 1]
    assert len(adapter.folders(1)) == 1


@pytest.mark.parametrize("at", ["VolumeCommit", "FunctionPutOutputs"])
async def test_a_container_that_crashes_in_a_step_is_followed_by_one_that_takes_it_or_finds_it(
    at: str, adapter: ModalAdapter, reporter: Reporter
) -> None:
    before = len(adapter.peer.calls)
    adapter.peer.fail(at, KillContainer(), times=1)
    await attempt(adapter, reporter)
    (call,) = calls_since(adapter.peer, before)
    assert len(call.runs) == 2
    assert adapter.store.numbers() == [0, 1]
    assert len(adapter.folders(1)) == 1


async def test_a_state_that_the_volume_lost_before_it_was_downloaded_is_made_again(
    adapter: ModalAdapter, reporter: Reporter
) -> None:
    adapter.spec = adapter.spec.model_copy(update={"keep_state": StateKeeping.PVC})

    def lose(_: object) -> None:
        for folder in adapter.folders(1):
            for path in folder.glob("optimizer*"):
                path.unlink()

    adapter.peer.do("FunctionPutOutputs", lose)
    with pytest.raises(TrainerError, match="CallLost"):
        await attempt(adapter, reporter)
    assert adapter.store.numbers() == [0]
    adapter.peer.clear_failures()
    await attempt(adapter, reporter, 2)
    assert adapter.store.numbers() == [0, 1]
    assert list(adapter.head().folder.glob("optimizer*"))


async def test_an_outage_in_which_the_answer_is_lost_is_outlasted(adapter: ModalAdapter, reporter: Reporter) -> None:
    await attempt(adapter, reporter)
    adapter.jobs += 1
    before = len(adapter.peer.calls)
    # The outage is the trainer's: the container must have its input, and have given its answer.
    adapter.peer.do("FunctionGetOutputs", lambda _: wait_until(lambda: adapter.peer.calls[-1].succeeded))
    adapter.peer.fail("FunctionGetOutputs", Cut(3.0), when=When.DONE, times=1)
    await attempt(adapter, reporter)
    (call,) = calls_since(adapter.peer, before)
    assert len(call.runs) == 1


async def test_a_step_that_takes_too_long_is_ended_together_with_its_container(
    adapter: ModalAdapter, reporter: Reporter
) -> None:
    too_slow(adapter)
    with pytest.raises(TrainerError, match="StepTimedOut"):
        await attempt(adapter, reporter)
    call = adapter.peer.calls[-1]
    assert call.cancelled
    (container,) = [each for each in adapter.peer.containers(APP, alive=False) if each.id == call.runs[-1].container]
    wait_until(lambda: not container.alive)


async def test_the_next_job_ends_the_call_of_one_that_was_given_up(adapter: ModalAdapter, reporter: Reporter) -> None:
    # So that a container waits.
    await attempt(adapter, reporter)
    adapter.jobs += 1
    # Nobody waits for the first call, which would hold up the second.
    slow = adapter.peer.fail("FunctionPutOutputs", Slow(600), times=1)
    adapter.peer.do("FunctionGetOutputs", lambda _: wait_until(lambda: slow.hits > 0))
    adapter.peer.fail("FunctionGetOutputs", REVOKED, times=1)
    with pytest.raises(TrainerError, match="CredentialsRefused"):
        await attempt(adapter, reporter)
    given_up = adapter.peer.calls[-1]
    assert not given_up.cancelled
    adapter.jobs += 1
    await attempt(adapter, reporter)
    assert given_up.cancelled
    assert not adapter.peer.calls[-1].cancelled
    assert adapter.store.numbers() == [0, 1, 2]


async def test_a_call_of_an_attempt_that_lost_its_rights_is_taken_up_with_the_new_token(
    adapter: ModalAdapter, reporter: Reporter
) -> None:
    before = len(adapter.peer.calls)
    adapter.peer.fail("FunctionGetOutputs", REVOKED, times=1)
    with pytest.raises(TrainerError, match="CredentialsRefused"):
        await attempt(adapter, reporter)
    await attempt(adapter, reporter, 2)
    (call,) = calls_since(adapter.peer, before)
    assert len(call.runs) == 1
