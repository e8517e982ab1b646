"""The service's names and sizes of a dense Qwen3's LoRA, and PEFT's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from claas_contract.outcome import FailureReason
from claas_trainer.engines.tinker.external.peft import adapter_sizes, exportable_shape, peft_files
from claas_trainer.errors import TrainerError
from claas_trainer.model.lora import LoraShape, new_adapter
from claas_trainer.model.shape import ModelShape
from tests.builders.models import build_tiny_qwen3
from tests.unit.trainer.tiny_models import build_gemma, build_mistral

RANK = 4
WHERE = "tinker://run/external_weights/name"
CONFIG = {"peft_type": "LORA", "r": RANK, "lora_alpha": 32}
Q_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
Q_B = Q_A.replace("lora_A", "lora_B")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_qwen3(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def shape(model: Path) -> ModelShape:
    return exportable_shape(model)


def weights(shape: ModelShape) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    sizes = adapter_sizes(shape, RANK)
    return {name: torch.randn(size, generator=generator) for name, size in sizes.items()}


def test_the_sizes_are_those_of_the_model_itself(model: Path, shape: ModelShape) -> None:
    adapter = new_adapter(model, LoraShape(RANK, 8), seed=0)
    assert adapter_sizes(shape, RANK) == {name: tuple(tensor.shape) for name, tensor in adapter.tensors.items()}


@pytest.mark.parametrize("prefix", ["base_model.model.", ""])
@pytest.mark.parametrize("alpha", [32, 12.5])
def test_tensors_are_written_unchanged_under_the_names_of_peft_with_the_alpha_of_the_service(
    shape: ModelShape, prefix: str, alpha: float
) -> None:
    given = weights(shape)
    sent = {prefix + name.removeprefix("base_model.model."): tensor for name, tensor in given.items()}
    files = peft_files(CONFIG | {"lora_alpha": alpha}, sent, shape, RANK, WHERE)
    config = json.loads(b"".join(files["adapter_config.json"].chunks()))
    assert (config["r"], config["lora_alpha"]) == (RANK, alpha)
    layers = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert config["target_modules"] == layers
    written = load(b"".join(files["adapter_model.safetensors"].chunks()))
    assert written.keys() == given.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in given.items())


def test_layers_that_were_not_trained_may_be_left_out(shape: ModelShape) -> None:
    some = {name: tensor for name, tensor in weights(shape).items() if "mlp" not in name}
    files = peft_files(CONFIG, some, shape, RANK, WHERE)
    config = json.loads(b"".join(files["adapter_config.json"].chunks()))
    assert config["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]


def _head(tensors: dict[str, Tensor]) -> None:
    tensors["base_model.model.model.unembed_tokens.lora_A.weight"] = torch.zeros(RANK, 64)


def _renamed(tensors: dict[str, Tensor]) -> None:
    for name in list(tensors):
        tensors[name.replace("q_proj", "query")] = tensors.pop(name)


def _deeper(tensors: dict[str, Tensor]) -> None:
    tensors[Q_A.replace("layers.0", "layers.2")] = tensors[Q_A]


def _half(tensors: dict[str, Tensor]) -> None:
    del tensors[Q_B]


def _turned(tensors: dict[str, Tensor]) -> None:
    tensors[Q_A] = tensors[Q_A].T


def _whole_numbers(tensors: dict[str, Tensor]) -> None:
    tensors[Q_A] = tensors[Q_A].to(torch.int64)


def _diverged(tensors: dict[str, Tensor]) -> None:
    tensors[Q_B][1, 1] = torch.nan


@pytest.mark.parametrize(
    ("spoil", "reason", "said"),
    [
        (_head, FailureReason.INVALID_INPUT, "no layers for model.unembed_tokens.lora_A.weight"),
        (_renamed, FailureReason.INVALID_INPUT, "no layers for model.layers.0.self_attn.query.lora_A.weight"),
        (_deeper, FailureReason.INVALID_INPUT, "no layers for model.layers.2.self_attn.q_proj.lora_A.weight"),
        (_half, FailureReason.INVALID_INPUT, f"there is no {Q_B}"),
        (dict.clear, FailureReason.INVALID_INPUT, "there is no tensor"),
        (_turned, FailureReason.INVALID_INPUT, r"\[64, 4\] and not \[4, 64\]"),
        (_whole_numbers, FailureReason.INVALID_INPUT, "torch.int64"),
        (_diverged, FailureReason.NOT_FINITE, "model.layers.0.self_attn.q_proj.lora_B.weight are NaN"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    shape: ModelShape, spoil: Callable[[dict[str, Tensor]], None], reason: FailureReason, said: str
) -> None:
    tensors = weights(shape)
    spoil(tensors)
    with pytest.raises(TrainerError, match=said) as caught:
        peft_files(CONFIG, tensors, shape, RANK, WHERE)
    assert caught.value.reason is reason
    assert WHERE in caught.value.message


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ([], "peft_type"),
        (CONFIG | {"r": 8}, "rank 8 and alpha 32, of an adapter of rank 4"),
        (CONFIG | {"lora_alpha": 0}, "alpha 0"),
        ({"peft_type": "LORA", "r": RANK}, "must be numbers"),
        (CONFIG | {"use_rslora": True}, "use_rslora is set"),
        (CONFIG | {"rank_pattern": {"q_proj": 8}}, "rank_pattern is set"),
    ],
)
def test_a_configuration_that_is_not_that_of_this_lora_is_refused(
    shape: ModelShape, config: object, said: str
) -> None:
    with pytest.raises(TrainerError, match=said) as caught:
        peft_files(config, weights(shape), shape, RANK, WHERE)
    assert caught.value.reason is FailureReason.INVALID_INPUT


def test_models_other_than_dense_qwen3_are_refused_before_a_step_is_paid(tmp_path: Path) -> None:
    for folder in (build_gemma(tmp_path / "gemma"), build_mistral(tmp_path / "mistral", sliding_window=64)):
        with pytest.raises(TrainerError, match="only adapters of dense Qwen3 can be exported") as caught:
            exportable_shape(folder)
        assert caught.value.reason is FailureReason.INVALID_INPUT
