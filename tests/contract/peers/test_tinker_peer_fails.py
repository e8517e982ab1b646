"""What the unmodified SDK makes of each failure that the peer can be told."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tinker
from tinker import types

from tests.contract.peers.steps import ADAM, Connect, entropy_like, fresh, logprobs, step, wide_datum
from tests.peers.tinker.calls import BILLED, Call, Operation
from tests.peers.tinker.failures import Answer, Cut, Do, Fails, NeverComes, When
from tests.peers.tinker.server import TinkerPeer

pytestmark = pytest.mark.contract

ONE_TOKEN = types.SamplingParams(max_tokens=1)
PROMPT = types.ModelInput.from_ints([1, 2, 3, 4])


def test_a_wrong_key_is_refused_at_once(model_folder: Path, connect: Connect) -> None:
    with TinkerPeer(model_folder, api_key="tml-other") as peer, pytest.raises(tinker.AuthenticationError):
        fresh(connect(peer), peer)


@pytest.mark.parametrize("status", [404, 410])
def test_an_expired_checkpoint_is_refused_at_once(peer: TinkerPeer, connect: Connect, status: int) -> None:
    service = connect(peer)
    client = fresh(service, peer)
    state, sampler = client.save_state("one").result().path, client.save_weights_for_sampler("one").result().path
    peer.expire(state, status=status)
    peer.expire(sampler, status=status)
    for create in (
        lambda: service.create_training_client_from_state_with_optimizer(state).result(),
        lambda: service.create_sampling_client(model_path=sampler).result(),
    ):
        with pytest.raises(tinker.APIStatusError) as raised:
            create()
        assert raised.value.status_code == status


def test_without_billing_a_client_is_refused_at_once_and_later_calls_wait(peer: TinkerPeer, connect: Connect) -> None:
    service = connect(peer)
    client = fresh(service, peer)
    peer.fail(BILLED, Answer(402))
    with pytest.raises(tinker.BillingError):
        fresh(service, peer)
    with pytest.raises(TimeoutError):
        client.save_state("one").result(timeout=0.5)


def test_a_rate_limit_is_waited_out(peer: TinkerPeer, connect: Connect) -> None:
    client = fresh(connect(peer), peer)
    storm = peer.fail(Operation.OPTIM_STEP, Answer(429), times=2)
    step(client, 1)
    assert storm.hits == 2
    assert [call.status for call in peer.called(Operation.OPTIM_STEP)] == [429, 429, 200]


def test_sampling_waits_out_a_rate_limit_too(peer: TinkerPeer, connect: Connect) -> None:
    sampler = connect(peer).create_sampling_client(base_model=peer.model_name).result()
    peer.fail(Operation.SAMPLE, Answer(429), times=1)
    assert len(sampler.sample(PROMPT, 1, ONE_TOKEN).result().sequences) == 1
    assert [call.status for call in peer.called(Operation.SAMPLE)] == [429, 200]


def test_a_result_that_never_comes_is_asked_for_again_and_again(model_folder: Path, connect: Connect) -> None:
    with TinkerPeer(model_folder, long_poll_s=0.1) as peer:
        client = fresh(connect(peer), peer)
        peer.fail(Operation.FORWARD_BACKWARD, NeverComes())
        future = client.forward_backward_custom([wide_datum(1)], lambda data, one: (one[0].sum(), {}))
        with pytest.raises(TimeoutError):
            future.result(timeout=0.8)
        asked = [call for call in peer.called(Operation.RETRIEVE) if call.of is Operation.FORWARD_BACKWARD]
        assert len(asked) > 2
        assert client.forward([wide_datum(2)], "cross_entropy").future().done() is False


def test_a_server_error_on_results_is_asked_again_without_a_pause(peer: TinkerPeer, connect: Connect) -> None:
    client = fresh(connect(peer), peer)
    broken = peer.fail(Operation.RETRIEVE, Answer(503), of=Operation.SAVE_STATE)
    future = client.save_state("one")
    deadline = time.monotonic() + 10
    while broken.hits < 20:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not future.future().done()
    broken.lift()
    assert future.result(timeout=5).path.endswith("/weights/one")


@pytest.mark.parametrize(("status", "error"), [(410, "RetryableException"), (404, "ValueError")])
def test_a_result_that_was_lost_is_an_error_at_once(
    peer: TinkerPeer, connect: Connect, status: int, error: str
) -> None:
    client = fresh(connect(peer), peer)
    peer.fail(Operation.RETRIEVE, Answer(status), of=Operation.SAVE_STATE)
    with pytest.raises(Exception, match=r"expired|SaveWeights") as raised:
        client.save_state("one").result()
    assert type(raised.value).__name__ == error


@pytest.mark.parametrize("category", [types.RequestErrorCategory.User, types.RequestErrorCategory.Server])
def test_a_request_that_fails_says_whose_mistake_it_was(
    peer: TinkerPeer, connect: Connect, category: types.RequestErrorCategory
) -> None:
    client = fresh(connect(peer), peer)
    peer.fail(Operation.OPTIM_STEP, Fails(category))
    with pytest.raises(tinker.RequestFailedError) as raised:
        client.optim_step(ADAM).result()
    assert raised.value.category is category


@pytest.mark.parametrize("when", list(When))
def test_a_service_that_was_gone_in_mid_step_did_the_step_once(
    peer: TinkerPeer, connect: Connect, when: When
) -> None:
    client = fresh(connect(peer), peer)
    untouched = fresh(connect(peer), peer)
    step(untouched, 1)
    peer.fail(Operation.OPTIM_STEP, Cut(), when=when, times=1)
    client.forward_backward_custom([wide_datum(1), wide_datum(101)], entropy_like).result()
    future = client.optim_step(ADAM)
    with pytest.raises(TimeoutError):
        future.result(timeout=0.3)
    peer.come_back()
    future.result(timeout=10)
    assert logprobs(client).equal(logprobs(untouched))


def test_closing_a_session_of_a_service_that_is_gone_does_not_end_by_itself(
    peer: TinkerPeer, connect: Connect
) -> None:
    service = connect(peer)
    fresh(service, peer)
    peer.cut()
    with pytest.raises(TimeoutError):
        service.close("success").result(timeout=0.5)


def test_a_run_ends_with_its_session_when_heartbeats_stop(model_folder: Path, connect: Connect) -> None:
    with TinkerPeer(model_folder, session_timeout_s=0.5) as peer:
        client = fresh(connect(peer), peer)
        time.sleep(0.6)
        with pytest.raises(tinker.APIStatusError) as raised:
            client.optim_step(ADAM).result()
        assert raised.value.status_code == 410


def test_a_checkpoint_may_come_back_without_its_optimizer(peer: TinkerPeer, connect: Connect) -> None:
    service = connect(peer)
    live = fresh(service, peer)
    step(live, 1)
    path = live.save_state("one").result().path
    peer.service.restores_optimizer = False
    resumed = service.create_training_client_from_state_with_optimizer(path).result()
    step(live, 2)
    step(resumed, 2)
    assert not logprobs(resumed).allclose(logprobs(live), atol=1e-5)


def test_more_than_the_allowed_top_k_is_refused_at_once(peer: TinkerPeer, connect: Connect) -> None:
    sampler = connect(peer).create_sampling_client(base_model=peer.model_name).result()
    sampler.sample(PROMPT, 1, ONE_TOKEN, topk_prompt_logprobs=20).result()
    with pytest.raises(tinker.BadRequestError, match="20"):
        sampler.sample(PROMPT, 1, ONE_TOKEN, topk_prompt_logprobs=21).result()


def test_a_retired_model_is_not_listed_and_not_trained(peer: TinkerPeer, connect: Connect) -> None:
    rest = tinker.RestClient(base_url=peer.url, api_key="tml-test")
    assert [model.model_name for model in rest.get_server_capabilities().result().supported_models] == [
        peer.model_name
    ]
    peer.retire()
    assert rest.get_server_capabilities().result().supported_models == []
    with pytest.raises(tinker.BadRequestError):
        fresh(connect(peer), peer)


def test_queued_requests_share_a_clock_cycle_and_awaited_ones_do_not(model_folder: Path, connect: Connect) -> None:
    with TinkerPeer(model_folder, cycle_s=0.3) as peer:
        client = fresh(connect(peer), peer)

        def seconds(work: Callable[[], object]) -> float:
            begin = time.monotonic()
            work()
            return time.monotonic() - begin

        def awaited() -> None:
            for number in range(4):
                client.save_state(f"awaited-{number}").result()

        def queued() -> None:
            for future in [client.save_state(f"queued-{number}") for number in range(4)]:
                future.result()

        assert seconds(awaited) > 0.9 > seconds(queued)


@pytest.mark.parametrize("when", list(When))
def test_a_test_can_act_at_each_moment_of_a_call(peer: TinkerPeer, connect: Connect, when: When) -> None:
    client = fresh(connect(peer), peer)
    seen: list[Call] = []
    done: list[bool] = []

    def look(call: Call) -> None:
        seen.append(call)
        done.append(len(peer.checkpoints.list()) == 1)

    peer.fail(Operation.SAVE_STATE, Do(look), when=when, run=client.model_id)
    client.save_state("one").result()
    assert [(call.run, call.seq) for call in seen] == [(client.model_id, 1)]
    if when is not When.ACCEPTED:
        assert done == [when is When.DONE]
