"""The unmodified SDK against the peer: what it trains and samples is right."""

from pathlib import Path

import pytest
import tinker
import torch
from peft import LoraConfig, get_peft_model
from tinker import types
from transformers import AutoModelForCausalLM

from tests.contract.peers.steps import RANK, TOKENS, Connect, entropy_like, fresh, logprobs, step, wide_datum
from tests.peers.tinker.calls import Operation
from tests.peers.tinker.model.lora import ALPHA, ATTENTION, MLP
from tests.peers.tinker.server import TinkerPeer

pytestmark = pytest.mark.contract


def test_three_steps_equal_those_of_torch_on_the_same_model(
    shared_peer: TinkerPeer, shared_service: tinker.ServiceClient, model_folder: Path
) -> None:
    client = fresh(shared_service, shared_peer)
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    local = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=[*ATTENTION, *MLP]))
    trained = shared_peer.state.runs[client.model_id].trainee
    assert trained is not None
    named = {name: parameter for name, parameter in local.named_parameters() if parameter.requires_grad}
    for module, (a, b) in trained.lora.matrices.items():
        named[f"base_model.model.{module}.lora_A.default.weight"].data.copy_(a)
        named[f"base_model.model.{module}.lora_B.default.weight"].data.copy_(b)
    adam = torch.optim.AdamW(named.values(), lr=1e-2, betas=(0.9, 0.95), eps=1e-12, weight_decay=0.1)

    def local_logprobs(seed: int) -> torch.Tensor:
        targets = wide_datum(seed).loss_fn_inputs["target_tokens"].to_torch().reshape(len(TOKENS), 5)
        return torch.log_softmax(local(input_ids=torch.tensor([TOKENS])).logits[0], dim=-1).gather(-1, targets)

    for number in range(3):
        loss = step(client, number)
        own, _ = entropy_like([], [local_logprobs(number), local_logprobs(number + 100)])
        torch.autograd.backward(own)
        torch.nn.utils.clip_grad_norm_(named.values(), 1.0)
        adam.step()
        adam.zero_grad()
        assert loss == pytest.approx(float(own.detach()), rel=1e-5)
    torch.testing.assert_close(logprobs(client), local_logprobs(7), atol=1e-4, rtol=0)


def test_a_client_resumed_with_its_optimizer_goes_on_exactly_and_one_without_does_not(
    shared_peer: TinkerPeer, shared_service: tinker.ServiceClient, connect: Connect
) -> None:
    live = fresh(shared_service, shared_peer)
    step(live, 1)
    path = live.save_state("one").result().path
    other = connect(shared_peer)
    resumed = other.create_training_client_from_state_with_optimizer(path).result()
    weights_only = other.create_training_client_from_state(path).result()
    assert torch.equal(logprobs(resumed), logprobs(live))
    assert torch.equal(logprobs(weights_only), logprobs(live))
    for client in (live, resumed, weights_only):
        step(client, 2)
    assert torch.equal(logprobs(resumed), logprobs(live))
    assert not torch.allclose(logprobs(weights_only), logprobs(live), atol=1e-5)


def test_a_sampler_gives_the_trainers_log_probabilities(
    shared_peer: TinkerPeer, shared_service: tinker.ServiceClient
) -> None:
    client = fresh(shared_service, shared_peer)
    step(client, 1)
    path = client.save_weights_for_sampler("one").result().path
    sampler = shared_service.create_sampling_client(model_path=path).result()
    targets = wide_datum(7).loss_fn_inputs["target_tokens"].to_torch().reshape(len(TOKENS), 5)[:-1].clone()
    targets[0, :4] = -1
    response = sampler.sample(
        types.ModelInput.from_ints(TOKENS),
        1,
        types.SamplingParams(max_tokens=1),
        target_prompt_logprobs=types.TensorData.from_torch(targets),
    ).result()
    assert response.target_prompt_logprobs is not None
    scored = response.target_prompt_logprobs.to_torch().reshape(targets.shape)
    assert scored[0, :4].tolist() == [0.0] * 4
    named = targets >= 0
    torch.testing.assert_close(scored[named], logprobs(client)[:-1][named], atol=1e-5, rtol=0)


def test_a_request_sent_again_runs_once(shared_peer: TinkerPeer, shared_service: tinker.ServiceClient) -> None:
    client = fresh(shared_service, shared_peer)
    step(client, 1)
    before = logprobs(client)
    again = tinker.TrainingClient(client.holder, 0, client.model_id, info=client.get_info())
    step(again, 1)
    assert torch.equal(logprobs(client), before)
    assert [call.resent for call in shared_peer.called(Operation.OPTIM_STEP)[-2:]] == [False, True]
