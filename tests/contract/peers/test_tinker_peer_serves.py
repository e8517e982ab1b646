"""Sampling, checkpoints and REST routes of the peer by the unmodified SDK."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import tinker
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tinker import types
from transformers import AutoModelForCausalLM

from tests.contract.peers.steps import RANK, TOKENS, Connect, fresh, logprobs, step, wide_datum
from tests.peers.tinker.calls import Operation
from tests.peers.tinker.server import TinkerPeer

pytestmark = pytest.mark.contract

PROMPT = types.ModelInput.from_ints(TOKENS)


@pytest.fixture
def sampler(shared_peer: TinkerPeer, shared_service: tinker.ServiceClient) -> tinker.SamplingClient:
    return shared_service.create_sampling_client(base_model=shared_peer.model_name).result()


def base_logprobs(model_folder: Path, tokens: list[int]) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    with torch.inference_mode():
        return torch.log_softmax(model(input_ids=torch.tensor([tokens])).logits[0], dim=-1)


def datum(**inputs: torch.Tensor) -> types.Datum:
    return types.Datum(
        model_input=PROMPT, loss_fn_inputs={name: types.TensorData.from_torch(one) for name, one in inputs.items()}
    )


def rest(peer: TinkerPeer) -> tinker.RestClient:
    return tinker.RestClient(base_url=peer.url, api_key="tml-test")


def test_sampled_tokens_carry_the_models_log_probabilities(
    sampler: tinker.SamplingClient, model_folder: Path
) -> None:
    params = types.SamplingParams(max_tokens=12, temperature=0.8, seed=5)
    response = sampler.sample(PROMPT, 2, params, topk_sample_logprobs=3).result()
    assert response.sequences[0].tokens != response.sequences[1].tokens
    for sequence in response.sequences:
        rows = base_logprobs(model_folder, TOKENS + sequence.tokens)[len(TOKENS) - 1 : -1]
        assert sequence.logprobs == pytest.approx(rows[range(12), sequence.tokens].tolist(), abs=1e-5)
        best = rows.topk(3)
        assert sequence.topk_logprobs_np is not None
        assert sequence.topk_logprobs_np.token_ids.tolist() == best.indices.tolist()
    again = sampler.sample(PROMPT, 2, params).result()
    assert [one.tokens for one in again.sequences] == [one.tokens for one in response.sequences]


def test_prompt_log_probabilities_cover_what_was_asked(sampler: tinker.SamplingClient, model_folder: Path) -> None:
    rows = base_logprobs(model_folder, TOKENS)[:-1]
    own = rows[range(len(TOKENS) - 1), TOKENS[1:]].tolist()
    assert sampler.compute_logprobs(PROMPT).result() == [None, *(pytest.approx(one, abs=1e-5) for one in own)]
    response = sampler.sample(
        PROMPT,
        1,
        types.SamplingParams(max_tokens=1),
        include_prompt_logprobs=True,
        topk_prompt_logprobs=4,
        prompt_logprobs_last_n=5,
    ).result()
    assert response.prompt_logprobs is not None
    assert response.prompt_logprobs[:-5] == [None] * (len(TOKENS) - 5)
    assert response.prompt_logprobs[-5:] == pytest.approx(own[-5:], abs=1e-5)
    assert response.topk_prompt_logprobs is not None
    assert response.topk_prompt_logprobs[:-5] == [None] * (len(TOKENS) - 5)
    last = response.topk_prompt_logprobs[-1]
    assert last is not None
    assert [token for token, _ in last] == rows[-1].topk(4).indices.tolist()


def test_chosen_ids_are_scored_alike_when_sent_sparsely(sampler: tinker.SamplingClient, model_folder: Path) -> None:
    ids = torch.full((len(TOKENS) - 1, 8), -1)
    ids[3, 2], ids[22, 7] = 0, 99
    rows = base_logprobs(model_folder, TOKENS)
    for tensor in (types.TensorData.from_torch(ids), types.TensorData.from_torch_sparse(ids, pad_value=-1)):
        scored = (
            sampler.sample(PROMPT, 1, types.SamplingParams(max_tokens=1), target_prompt_logprobs=tensor)
            .result()
            .target_prompt_logprobs
        )
        assert scored is not None
        assert (scored.sparse_crow_indices is None) == (tensor.sparse_crow_indices is None)
        values = scored.to_torch().reshape(ids.shape)
        assert values[3, 2].item() == pytest.approx(rows[3, 0].item(), abs=1e-5)
        assert values[22, 7].item() == pytest.approx(rows[22, 99].item(), abs=1e-5)
        assert values[ids < 0].count_nonzero() == 0


def test_an_answer_ends_at_what_stops_it(sampler: tinker.SamplingClient, shared_peer: TinkerPeer) -> None:
    greedy = sampler.sample(PROMPT, 1, types.SamplingParams(max_tokens=40, temperature=0)).result().sequences[0]
    assert (greedy.stop_reason, len(greedy.tokens)) == ("length", 40)
    letters = [shared_peer.model.tokenizer.decode([token]) for token in greedy.tokens]
    place, letter = next((place, letter) for place, letter in enumerate(letters) if place and letter.isascii())
    for stop in (greedy.tokens[place : place + 1], [letter], letter):
        params = types.SamplingParams(max_tokens=40, temperature=0, stop=stop)
        stopped = sampler.sample(PROMPT, 1, params).result().sequences[0]
        assert (stopped.stop_reason, stopped.tokens) == ("stop", greedy.tokens[: place + 1])


@pytest.mark.parametrize(
    "narrow", [types.SamplingParams(max_tokens=8, top_k=1), types.SamplingParams(max_tokens=8, top_p=1e-6)]
)
def test_sampling_from_one_token_is_greedy(sampler: tinker.SamplingClient, narrow: types.SamplingParams) -> None:
    greedy = types.SamplingParams(max_tokens=8, temperature=0)
    tokens = [sampler.sample(PROMPT, 1, params).result().sequences[0].tokens for params in (greedy, narrow)]
    assert tokens[0] == tokens[1]


def test_targets_and_weights_are_read_densely_and_sparsely(
    shared_peer: TinkerPeer, shared_service: tinker.ServiceClient
) -> None:
    client = fresh(shared_service, shared_peer)
    weights = torch.zeros(len(TOKENS), 5)
    weights[3, 1], weights[20, 4] = 0.5, -2.0
    wide = wide_datum(3)
    targets = wide.loss_fn_inputs["target_tokens"].to_torch().reshape(len(TOKENS), 5)
    losses = []
    for tensor in (types.TensorData.from_torch(weights), types.TensorData.from_torch_sparse(weights)):
        sent = types.Datum(
            model_input=PROMPT,
            loss_fn_inputs={"target_tokens": wide.loss_fn_inputs["target_tokens"], "weights": tensor},
        )
        losses.append(client.forward([sent], "cross_entropy").result().metrics["loss:sum"])
    column = torch.zeros(len(TOKENS))
    column[3] = 0.5
    one = client.forward([datum(target_tokens=targets[:, 1], weights=column)], "cross_entropy").result()
    column = torch.zeros(len(TOKENS))
    column[20] = -2.0
    other = client.forward([datum(target_tokens=targets[:, 4], weights=column)], "cross_entropy").result()
    assert one.loss_fn_outputs[0]["logprobs"].shape == [len(TOKENS)]
    total = one.metrics["loss:sum"] + other.metrics["loss:sum"]
    assert losses == [pytest.approx(total, rel=1e-5)] * 2


def test_a_prompt_of_one_token_and_one_that_fills_the_context_are_answered(
    sampler: tinker.SamplingClient, shared_peer: TinkerPeer
) -> None:
    short = types.ModelInput.from_ints([5])
    assert sampler.compute_logprobs(short).result() == [None]
    full = types.ModelInput.from_ints([5] * shared_peer.model.context_length)
    with pytest.raises(tinker.BadRequestError, match="context"):
        sampler.sample(full, 1, types.SamplingParams()).result()


def test_a_long_list_of_datums_in_parts_is_as_one(model_folder: Path, connect: Connect) -> None:
    after = []
    for size in (1024, 2):
        with TinkerPeer(model_folder, datums_per_request=size, compress=size == 2) as peer:
            client = fresh(connect(peer), peer)
            data = [wide_datum(number) for number in range(5)]
            client.forward_backward(data, "cross_entropy").result()
            client.optim_step(types.AdamParams(learning_rate=1e-2)).result()
            after.append(logprobs(client))
    torch.testing.assert_close(after[0], after[1])


def test_importance_sampling_weighs_by_the_ratio(
    shared_peer: TinkerPeer, shared_service: tinker.ServiceClient
) -> None:
    client = fresh(shared_service, shared_peer)
    old, gain = torch.full((len(TOKENS),), -5.0), torch.linspace(-1, 1, len(TOKENS))
    data = [datum(target_tokens=torch.tensor(TOKENS), logprobs=old, advantages=gain)]
    output = client.forward_backward(data, "importance_sampling").result()
    own = output.loss_fn_outputs[0]["logprobs"].to_torch()
    assert output.metrics["loss:sum"] == pytest.approx(float(-(torch.exp(own - old) * gain).sum()), rel=1e-5)


def test_an_export_is_an_adapter_that_peft_reads(
    shared_peer: TinkerPeer, shared_service: tinker.ServiceClient, model_folder: Path, tmp_path: Path
) -> None:
    client = fresh(shared_service, shared_peer)
    step(client, 1)
    path = client.save_weights_external("out").result().path
    urls = rest(shared_peer).get_external_weights_urls(path).result()
    assert urls.expires > datetime.now(UTC)
    for name, url in urls.urls.items():
        (tmp_path / name).write_bytes(httpx.get(url).raise_for_status().content)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["lora_alpha"], config["r"]) == (32, RANK)
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    shape = LoraConfig(
        r=RANK,
        lora_alpha=config["lora_alpha"],
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        task_type="CAUSAL_LM",
    )
    get_peft_model(base, shape).peft_config["default"].save_pretrained(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, tmp_path)
    targets = wide_datum(7).loss_fn_inputs["target_tokens"].to_torch().reshape(len(TOKENS), 5)
    with torch.inference_mode():
        own = torch.log_softmax(model(input_ids=torch.tensor([TOKENS])).logits[0], dim=-1).gather(-1, targets)
    torch.testing.assert_close(own, logprobs(client), atol=1e-5, rtol=0)


def test_a_signed_url_ends_with_its_time(model_folder: Path, connect: Connect) -> None:
    hours = [0]
    with TinkerPeer(model_folder, now=lambda: datetime.now(UTC) + timedelta(hours=hours[0])) as peer:
        client = fresh(connect(peer), peer)
        path = client.save_weights_external("out").result().path
        url = rest(peer).get_external_weights_urls(path).result().urls["adapter_config.json"]
        assert httpx.get(url).status_code == 200
        hours[0] = 1
        assert httpx.get(url).status_code == 403


def test_checkpoints_are_listed_expire_and_are_deleted(model_folder: Path, connect: Connect) -> None:
    hours = [0]
    with TinkerPeer(model_folder, now=lambda: datetime.now(UTC) + timedelta(hours=hours[0])) as peer:
        client = fresh(connect(peer), peer)
        client.save_state("kept").result()
        lent = client.save_state("lent", ttl_seconds=7200, user_metadata={"job": "7"}).result().path
        sampler = client.save_weights_for_sampler("sampler").result().path
        asked = rest(peer)

        def names() -> list[str]:
            return [one.checkpoint_id for one in asked.list_checkpoints(client.model_id).result().checkpoints]

        assert names() == ["weights/kept", "weights/lent", "sampler_weights/sampler"]
        assert asked.list_checkpoints(client.model_id).result().checkpoints[1].user_metadata == {"job": "7"}
        hours[0] = 3
        assert names() == ["weights/kept", "sampler_weights/sampler"]
        with pytest.raises(tinker.NotFoundError):
            asked.get_weights_info_by_tinker_path(lent).result()
        asked.set_checkpoint_ttl_from_tinker_path(sampler, 3600).result()
        with pytest.raises(tinker.BadRequestError):
            asked.set_checkpoint_ttl_from_tinker_path(sampler, 3599).result()
        hours[0] = 5
        asked.delete_checkpoint(client.model_id, "weights/kept").result()
        assert names() == []
        with pytest.raises(tinker.NotFoundError):
            asked.delete_checkpoint(client.model_id, "weights/kept").result()


def test_runs_and_weights_tell_what_they_are(shared_peer: TinkerPeer, shared_service: tinker.ServiceClient) -> None:
    client = fresh(shared_service, shared_peer)
    path = client.save_state("one").result().path
    asked = rest(shared_peer)
    last = shared_peer.called(Operation.SAVE_STATE)[-1]
    assert (last.run, last.checkpoint) == (client.model_id, "one")
    run = asked.get_training_run_by_tinker_path(path).result()
    assert (run.training_run_id, run.base_model, run.lora_rank) == (client.model_id, shared_peer.model_name, RANK)
    assert run.last_checkpoint is not None
    assert run.last_checkpoint.tinker_path == path
    assert asked.list_training_runs(limit=1).result().training_runs == [run]
    info = asked.get_weights_info_by_tinker_path(path).result()
    assert (info.base_model, info.lora_rank, info.train_unembed) == (shared_peer.model_name, RANK, False)


def test_a_name_that_is_taken_is_refused_and_overwritten_on_request(
    shared_peer: TinkerPeer, shared_service: tinker.ServiceClient
) -> None:
    client = fresh(shared_service, shared_peer)
    client.save_state("one").result()
    with pytest.raises(tinker.RequestFailedError, match="exists already"):
        client.save_state("one").result()
    assert client.save_state("one", overwrite=True).result().path.endswith("/weights/one")
    with pytest.raises(tinker.BadRequestError):
        client.save_state("not/one").result()


def test_weights_are_not_loaded_into_a_used_client(
    shared_peer: TinkerPeer, shared_service: tinker.ServiceClient
) -> None:
    client = fresh(shared_service, shared_peer)
    path = client.save_state("one").result().path
    with pytest.warns(FutureWarning), pytest.raises(tinker.BadRequestError):
        client.load_state(path).result()


def test_another_session_takes_up_a_run_where_it_stopped(peer: TinkerPeer, connect: Connect) -> None:
    first = fresh(connect(peer), peer)
    step(first, 1)
    sent = len(peer.calls)
    service = connect(peer)
    second = tinker.TrainingClient(service.holder, 0, first.model_id, info=first.get_info())
    second._request_id_counter = second._turn_counter = 3
    step(second, 2)
    through = fresh(service, peer)
    step(through, 1)
    step(through, 2)
    assert torch.equal(logprobs(second), logprobs(through))
    resumed = [call for call in peer.calls[sent:] if call.operation is Operation.OPTIM_STEP]
    assert [(call.run, call.seq) for call in resumed[:1]] == [(first.model_id, 6)]
