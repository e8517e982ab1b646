"""What the unmodified client gets when the peer is told to fail, and what runs again."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import modal
import modal.exception as errors
import pytest
from grpclib.const import Status

from tests.contract.peers.modal_site import CALL_S, connect, deploy, deploy_sample, until
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
from tests.peers.modal.server import ModalPeer
from tests.peers.modal.state.calls import CallState

pytestmark = pytest.mark.contract


@pytest.fixture(scope="module")
def module_peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModalPeer]:
    with ModalPeer(tmp_path_factory.mktemp("modal"), background_commit_s=None) as peer:
        deploy_sample(peer)
        yield peer


@pytest.fixture
def peer(module_peer: ModalPeer) -> Iterator[ModalPeer]:
    yield module_peer
    module_peer.clear_failures()


@pytest.fixture
def client(peer: ModalPeer, monkeypatch: pytest.MonkeyPatch) -> modal.Client:
    return connect(peer, monkeypatch)


@pytest.fixture
def worker(client: modal.Client) -> Any:
    return modal.Cls.from_name("sample", "Worker", client=client)()


def test_a_refused_token_is_told_at_every_call(peer: ModalPeer, worker: Any) -> None:
    peer.accept("ak-other", "as-other")
    with pytest.raises(errors.AuthError, match="Token validation failed"):
        worker.tell.spawn({})
    environment = peer.environment()
    peer.accept(environment["MODAL_TOKEN_ID"], environment["MODAL_TOKEN_SECRET"])
    assert worker.tell.remote({})["request"] == {}


def test_what_is_not_deployed_is_not_found(client: modal.Client) -> None:
    for app, name in (("other", "Worker"), ("sample", "Other")):
        with pytest.raises(errors.NotFoundError, match="Lookup failed for Cls"):
            modal.Cls.from_name(app, name, client=client)().tell.spawn({})
    with pytest.raises(errors.NotFoundError):
        modal.Cls.from_name("sample", "Worker", client=client)().no_such_method.spawn({})
    with pytest.raises(errors.NotFoundError):
        modal.FunctionCall.from_id("fc-none", client=client).get(timeout=0)
    with pytest.raises(errors.NotFoundError):
        modal.Volume.from_name("none", client=client).listdir("/")
    with pytest.raises(errors.NotFoundError, match="environment 'prod' not found"):
        modal.Server.from_name("sample", "Site", environment_name="prod", client=client).get_url()


def test_a_deployment_without_its_secret_fails(peer: ModalPeer) -> None:
    peer.secret("sample-secret", {"OTHER": "x"})
    refused = deploy(peer)
    peer.secret("sample-secret", {"SAMPLE_WORD": "hush"})
    assert refused.returncode != 0
    assert "missing key(s) SAMPLE_WORD" in refused.stderr


@pytest.mark.parametrize(
    ("effect", "error"),
    [
        (SPENT, errors.ResourceExhaustedError),
        (UNPAID, errors.PermissionDeniedError),
        (THROTTLED, errors.ResourceExhaustedError),
        (Refuse(Status.INVALID_ARGUMENT), errors.InvalidError),
    ],
)
def test_a_refusal_is_the_clients_error(peer: ModalPeer, worker: Any, effect: Refuse, error: type[Exception]) -> None:
    rule = peer.fail("FunctionMap", effect)
    with pytest.raises(error, match=effect.message):
        worker.tell.spawn({})
    assert rule.hits == (2 if effect is THROTTLED else 1)


def test_a_throttled_call_is_made_once_it_may(peer: ModalPeer, worker: Any) -> None:
    rule = peer.fail("FunctionMap", THROTTLED, times=1)
    assert worker.tell.remote({"a": 1})["request"] == {"a": 1}
    assert rule.hits == 1


def test_a_lost_answer_makes_no_second_call(peer: ModalPeer, worker: Any) -> None:
    before = len(peer.calls)
    rule = peer.fail("FunctionMap", OUT_OF_ORDER, when=When.DONE, times=2)
    assert worker.tell.remote({})["request"] == {}
    assert rule.hits == 2
    assert len(peer.calls) == before + 1
    assert len(peer.calls[-1].runs) == 1


def test_the_client_goes_on_after_a_cut(peer: ModalPeer, worker: Any) -> None:
    call = worker.sleep.spawn(1.0)
    peer.fail("FunctionGetOutputs", Cut(0.5), times=1)
    assert call.get(timeout=CALL_S) == "slept"


@pytest.mark.parametrize(
    ("fate", "error"),
    [
        (Fate.LOST, errors.InternalFailure),
        (Fate.TIMED_OUT, errors.FunctionTimeoutError),
        (Fate.EXPIRED, errors.OutputExpiredError),
        (Fate.UNKNOWN, errors.NotFoundError),
    ],
)
def test_a_call_ends_as_ordered(peer: ModalPeer, worker: Any, fate: Fate, error: type[Exception]) -> None:
    peer.fail("FunctionMap", EndCall(fate), of="Worker.*", times=1)
    call = worker.tell.spawn({})
    with pytest.raises(error):
        call.get(timeout=0.5)
    running = worker.sleep.spawn(20)
    until(lambda: peer.calls[-1].state is CallState.RUNNING)
    peer.end_call(running.object_id, fate)
    with pytest.raises(error):
        running.get(timeout=0.5)


def test_a_result_comes_later_than_asked_for(worker: Any) -> None:
    call = worker.sleep.spawn(1.0)
    with pytest.raises(TimeoutError):
        call.get(timeout=0.1)
    assert call.get(timeout=CALL_S) == "slept"


def test_an_error_of_the_class_is_told_by_its_text(worker: Any) -> None:
    with pytest.raises(errors.RemoteError, match="ValueError\\('no such thing'\\)"):
        worker.fail.remote("no such thing")


@pytest.mark.parametrize("at", ["FunctionGetInputs", "FunctionPutOutputs"])
def test_a_call_whose_container_crashes_runs_again(peer: ModalPeer, worker: Any, at: str) -> None:
    when = When.DONE if at == "FunctionGetInputs" else When.RECEIVED
    peer.fail(at, KillContainer(), when=when, times=1)
    assert worker.tell.remote({"a": 1})["request"] == {"a": 1}
    first, second = peer.calls[-1].runs
    assert first.container != second.container


def test_calls_end_as_starts_that_fail_again_and_again(peer: ModalPeer, worker: Any) -> None:
    for container in peer.containers("sample"):
        peer.kill_container(container.id)
    until(lambda: not peer.containers("sample"))
    before = len(peer.containers("sample", alive=False))
    peer.secret("sample-secret", {"SAMPLE_WORD": "break"})
    with pytest.raises(RuntimeError, match="the start is broken"):
        worker.tell.remote({})
    peer.secret("sample-secret", {"SAMPLE_WORD": "hush"})
    assert peer.calls[-1].runs == []
    assert len(peer.containers("sample", alive=False)) == before + 3
    assert worker.tell.remote({})["request"] == {}


def test_a_function_without_a_limit_has_a_container_for_each_call(peer: ModalPeer, client: modal.Client) -> None:
    fill = modal.Function.from_name("sample", "fill", client=client)
    peer.fail("FunctionPutOutputs", Slow(2.0), times=2)
    calls = [fill.spawn(name, "x") for name in "ab"]
    assert [call.get(timeout=CALL_S) for call in calls] == ["main", "main"]
    assert len({call.runs[0].container for call in peer.calls[-2:]}) == 2


def test_a_killed_container_is_replaced_and_its_call_runs_again(peer: ModalPeer, worker: Any) -> None:
    call = worker.sleep.spawn(0.5)
    until(lambda: peer.calls[-1].state is CallState.RUNNING)
    peer.kill_container(peer.calls[-1].runs[0].container)
    assert call.get(timeout=CALL_S) == "slept"
    assert len(peer.calls[-1].runs) == 2


def test_a_cancelled_call_ends_at_once_and_its_container_takes_the_next(peer: ModalPeer, worker: Any) -> None:
    call = worker.sleep.spawn(30)
    until(lambda: peer.calls[-1].state is CallState.RUNNING)
    container = peer.calls[-1].runs[0].container
    call.cancel()
    with pytest.raises(errors.RemoteError):
        call.get(timeout=1)
    assert worker.tell.remote({})["request"] == {}
    assert peer.calls[-1].runs[0].container == container


def test_cancelling_can_end_the_container(peer: ModalPeer, worker: Any) -> None:
    call = worker.sleep.spawn(30)
    until(lambda: peer.calls[-1].state is CallState.RUNNING)
    container = peer.calls[-1].runs[0].container
    call.cancel(terminate_containers=True)
    with pytest.raises(errors.RemoteError):
        call.get(timeout=1)
    until(lambda: all(each.id != container for each in peer.containers("sample")), 2.0)


def test_one_container_takes_one_call_after_the_other(peer: ModalPeer, worker: Any) -> None:
    calls = [worker.sleep.spawn(0.3) for _ in range(3)]
    assert [call.get(timeout=CALL_S) for call in calls] == ["slept"] * 3
    runs = [call.runs for call in peer.calls[-3:]]
    assert len({run.container for (run,) in runs}) == 1
    assert min(later.at - earlier.at for (earlier,), (later,) in pairwise(runs)) >= 0.3
    running, queued = worker.sleep.spawn(1), worker.tell.spawn({})
    queued.cancel()
    with pytest.raises(errors.RemoteError):
        queued.get(timeout=1)
    assert running.get(timeout=CALL_S) == "slept"
    assert peer.calls[-1].runs == []


def test_a_refused_commit_is_an_error_in_the_container_and_is_not_published(peer: ModalPeer, worker: Any) -> None:
    rule = peer.fail("VolumeCommit", COMMIT_REFUSED, of="sample-shelf", times=1)
    with pytest.raises(errors.RemoteError, match="RuntimeError\\('volume commit failed'\\)"):
        worker.write.remote("refused", "x")
    assert rule.hits == 1
    assert not (peer.volume("sample-shelf") / "refused").exists()
    worker.write.remote("next", "x")
    assert (peer.volume("sample-shelf") / "refused").exists(), "the next commit publishes it too"
