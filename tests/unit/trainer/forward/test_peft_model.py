"""The generic path: a model with an adapter attached, switched off, and detached."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from claas_trainer.forward.peft_model import attached, load_base
from claas_trainer.model.lora import AdapterWeights, LoraShape
from claas_trainer.sdpo.batch import TokenBatch, TokenSample
from claas_trainer.sdpo.errors import AdapterError, WeightsError
from claas_trainer.sdpo.policy import Network
from tests.builders.models import build_tiny_qwen3
from tests.unit.trainer.core.models import CPU


@pytest.fixture
def batch(samples: list[TokenSample]) -> TokenBatch:
    return TokenBatch.of([s.student_prompt_ids for s in samples], [s.response_ids for s in samples], CPU)


def plain_logits(model: torch.nn.Module, samples: list[TokenSample]) -> Tensor:
    """One sample at a time, all positions, no padding."""
    rows = []
    for sample in samples:
        ids = torch.tensor([[*sample.student_prompt_ids, *sample.response_ids]])
        rows.append(model(input_ids=ids).logits[0, len(sample.student_prompt_ids) - 1 : -1])
    return torch.cat(rows)


def test_the_response_logits_are_those_of_each_sample_alone(
    base: PreTrainedModel, adapter: AdapterWeights, samples: list[TokenSample], batch: TokenBatch
) -> None:
    with torch.no_grad(), attached(base, adapter) as model:
        got = model.logits(model.features(batch, Network.STUDENT))
        torch.testing.assert_close(got, plain_logits(model.peft, samples), rtol=1e-4, atol=1e-5)


def test_each_network_has_its_own_weights_and_leaves_the_student_s_as_they_were(
    base: PreTrainedModel, adapter: AdapterWeights, samples: list[TokenSample], batch: TokenBatch
) -> None:
    with torch.no_grad():
        alone = plain_logits(base, samples)
    with torch.no_grad(), attached(base, adapter) as model:
        student = plain_logits(model.peft, samples)
    halved = AdapterWeights(adapter.shape, {name: tensor / 2 for name, tensor in adapter.tensors.items()})
    with torch.no_grad(), attached(base, halved) as model:
        average = plain_logits(model.peft, samples)
    with attached(base, adapter) as model:
        model.place(model.layout.gather(adapter.tensors))
        model.refresh(model.layout.gather(halved.tensors))
        for network, expected in (
            (Network.AVERAGE, average),
            (Network.BASE, alone),
            (Network.STUDENT, student),
        ):
            got = model.features(batch, network)
            assert not got.requires_grad
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
        assert all(torch.equal(p, adapter.tensors[name]) for name, p in model.trainable().items())
    assert (student - alone).abs().max() > 0.1
    assert (student - average).abs().max() > 0.1


def test_after_it_is_detached_the_base_model_is_as_it_was(
    base: PreTrainedModel, adapter: AdapterWeights, samples: list[TokenSample]
) -> None:
    weights = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    modules = [(name, type(module)) for name, module in base.named_modules()]
    with torch.no_grad():
        before = plain_logits(base, samples)
        with attached(base, adapter) as model:
            assert (plain_logits(model.peft, samples) - before).abs().max() > 0.1
        assert torch.equal(plain_logits(base, samples), before)
    assert [(name, type(module)) for name, module in base.named_modules()] == modules
    assert base.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in base.state_dict().items())
    assert not any(parameter.requires_grad for parameter in base.parameters())


@pytest.mark.filterwarnings("error")
def test_the_next_tenant_does_not_feel_the_last_ones_adapter(
    base: PreTrainedModel, adapter: AdapterWeights, fresh: AdapterWeights, samples: list[TokenSample]
) -> None:
    with torch.no_grad():
        alone = plain_logits(base, samples)
        with attached(base, adapter):
            pass
        with attached(base, fresh) as model:
            assert torch.equal(plain_logits(model.peft, samples), alone)


def test_an_error_while_attached_detaches_too(
    base: PreTrainedModel, adapter: AdapterWeights, samples: list[TokenSample]
) -> None:
    with torch.no_grad():
        before = plain_logits(base, samples)
        with pytest.raises(RuntimeError, match="in mid-step"), attached(base, adapter):
            raise RuntimeError("in mid-step")
        assert torch.equal(plain_logits(base, samples), before)


def test_over_a_bfloat16_base_masters_and_logits_are_float32(
    model_folder: Path, adapter: AdapterWeights, batch: TokenBatch
) -> None:
    base = load_base(model_folder, torch.bfloat16)
    with attached(base, adapter) as model:
        assert {p.dtype for p in model.trainable().values()} == {torch.float32}
        logits = model.logits(model.features(batch, Network.STUDENT))
    assert logits.dtype is torch.float32
    # Rounded to bfloat16 on the way, they would survive the round trip unchanged.
    assert not torch.equal(logits, logits.bfloat16().float())


def test_attaching_draws_nothing_from_the_callers_generator(base: PreTrainedModel, adapter: AdapterWeights) -> None:
    state = torch.random.get_rng_state()
    with attached(base, adapter):
        pass
    assert torch.equal(torch.random.get_rng_state(), state)


def test_an_adapter_of_another_shape_is_refused_by_the_name_of_the_tensor(
    base: PreTrainedModel, adapter: AdapterWeights, samples: list[TokenSample]
) -> None:
    name = next(iter(adapter.tensors))
    missing = {key: tensor for key, tensor in adapter.tensors.items() if key != name}
    wrong = {**adapter.tensors, name: torch.zeros(1, 1)}
    with torch.no_grad():
        before = plain_logits(base, samples)
        for tensors in (missing, wrong):
            with (
                pytest.raises(AdapterError, match=name),
                attached(base, AdapterWeights(adapter.shape, tensors)),
            ):
                pass
        assert torch.equal(plain_logits(base, samples), before)


def test_the_head_cannot_be_a_target(base: PreTrainedModel) -> None:
    tensors = {"base_model.model.lm_head.lora_A.weight": torch.zeros(2, 32)}
    adapter = AdapterWeights(LoraShape(2, 4, ("lm_head",)), tensors)
    with pytest.raises(AdapterError, match="head can't be a target"), attached(base, adapter):
        pass


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no usable model"):
        load_base(tmp_path)


def test_a_model_of_which_a_part_is_missing_is_refused_rather_than_filled_with_random_weights(tmp_path: Path) -> None:
    file = build_tiny_qwen3(tmp_path) / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if name.endswith("q_proj.weight"))
    save_file({key: tensor for key, tensor in weights.items() if key != name}, file, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"1 weights are missing.*q_proj"):
        load_base(tmp_path)


def test_a_model_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    file = build_tiny_qwen3(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="no usable model"):
        load_base(tmp_path)
