"""Weights that vLLM shares: what an export may say, and that nothing can write to what is mapped."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from claas_trainer.forward.transformer.adapters import adapter_shapes
from claas_trainer.forward.transformer.model import DecoderModel
from claas_trainer.forward.weights.host import HostWeights
from claas_trainer.forward.weights.read_only import ReadOnlyError, ReadOnlyTensor
from claas_trainer.forward.weights.shared import SharedTensor, SharedWeights, parse_export, vllm_names
from claas_trainer.model.config_shape import read_shape
from claas_trainer.model.shape import ModelShape, Rope
from claas_trainer.sdpo.batch import TokenSample
from claas_trainer.sdpo.errors import WeightsError
from claas_trainer.sdpo.optimizer import OptimizerState, Part
from claas_trainer.sdpo.settings import SdpoConfig
from claas_trainer.sdpo.step import sdpo_step

SHAPE = ModelShape("qwen3", 96, 32, 48, 1, 4, 2, 16, Rope.plain(1e4, 16), qk_norm=True)
CPU = torch.device("cpu")


def entry(name: str, *shape: int, dtype: str = "bfloat16") -> dict[str, object]:
    handle = base64.b64encode(bytes(64)).decode()
    return {"name": name, "shape": list(shape), "dtype": dtype, "handle": handle, "offset": 0}


def export(**other: tuple[int, ...]) -> dict[str, object]:
    sizes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (96, 32),
        "model.norm.weight": (32,),
        "lm_head.weight": (96, 32),
    }
    layer = {
        "input_layernorm": (32,),
        "self_attn.qkv_proj": (128, 32),
        "self_attn.o_proj": (32, 64),
        "self_attn.q_norm": (16,),
        "self_attn.k_norm": (16,),
        "post_attention_layernorm": (32,),
        "mlp.gate_up_proj": (96, 32),
        "mlp.down_proj": (32, 48),
    }
    sizes |= {f"model.layers.0.{name}.weight": size for name, size in layer.items()}
    sizes |= other
    return {"refusal": None, "tensors": [entry(name, *size) for name, size in sizes.items()]}


def test_an_export_of_the_model_is_taken() -> None:
    weights = SharedWeights(SHAPE, CPU, parse_export(export()))
    assert weights.dtype is torch.bfloat16
    assert weights.resident_bytes == 0


def test_a_padded_vocabulary_is_taken_and_a_shorter_one_is_not() -> None:
    SharedWeights(SHAPE, CPU, parse_export(export(**{"lm_head.weight": (128, 32)})))
    with pytest.raises(WeightsError, match="serves another model"):
        SharedWeights(SHAPE, CPU, parse_export(export(**{"lm_head.weight": (64, 32)})))


@pytest.mark.parametrize("size", [(64, 32), (128, 16)])
def test_a_part_of_the_model_is_refused(size: tuple[int, ...]) -> None:
    with pytest.raises(WeightsError, match=r"qkv_proj.*tensor parallelism"):
        SharedWeights(SHAPE, CPU, parse_export(export(**{"model.layers.0.self_attn.qkv_proj.weight": size})))


def test_another_model_is_refused_by_the_name_of_what_is_missing() -> None:
    document = export()
    tensors = document["tensors"]
    assert isinstance(tensors, list)
    document["tensors"] = [tensor for tensor in tensors if "q_norm" not in tensor["name"]]
    with pytest.raises(WeightsError, match=r"exports no model\.layers\.0\.self_attn\.q_norm"):
        SharedWeights(SHAPE, CPU, parse_export(document))


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"refusal": "they are quantised (fp8)"}, r"quantised \(fp8\)"),
        ({}, "not an export"),
        ({"refusal": None, "tensors": []}, "not an export"),
        ({"tensors": [{**entry("x", 2), "handle": "short"}]}, "can't be read"),
        ({"tensors": [{**entry("x", 2), "dtype": "int8"}]}, "can't be read"),
        ({"tensors": [{**entry("x", 2), "shape": ["2"]}]}, "can't be read"),
    ],
)
def test_what_is_no_usable_export_is_refused(document: Mapping[str, object], said: str) -> None:
    with pytest.raises(WeightsError, match=said):
        parse_export(document)


class Memory:
    """Stands in for another process's allocation: a tensor of this one, by its handle."""

    tensors: ClassVar[dict[bytes, Tensor]] = {}

    def __init__(self, handle: bytes, device: torch.device) -> None:
        self._tensor = self.tensors[handle]

    def tensor(self, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return self._tensor

    def close(self) -> None:
        return


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[HostWeights, dict[str, SharedTensor]]:
    """A model of files, and the same as a server would hold it."""
    config = Qwen3Config(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, tie_word_embeddings=False, dtype="bfloat16",
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path)
    shape = read_shape(tmp_path)
    files = HostWeights.read(tmp_path, shape, CPU, torch.bfloat16)
    named = vllm_names(files)
    handles = {name: index.to_bytes(64, "little") for index, name in enumerate(named)}
    monkeypatch.setattr(Memory, "tensors", {handles[name]: tensor for name, tensor in named.items()})
    monkeypatch.setattr("claas_trainer.forward.weights.shared.MappedAllocation", Memory)
    return files, {
        name: SharedTensor(name, tuple(tensor.shape), tensor.dtype, handles[name], 0)
        for name, tensor in named.items()
    }


def test_a_step_on_served_weights_is_the_step_on_the_models_files(
    served: tuple[HostWeights, dict[str, SharedTensor]],
) -> None:
    files, tensors = served
    shared = SharedWeights(files.shape, CPU, tensors, files.digest)
    before = {name: tensor.clone() for name, tensor in vllm_names(files).items()}
    adapter = adapter_shapes(files.shape, 4)
    generator = torch.Generator().manual_seed(1)
    masters = {name: torch.randn(size, generator=generator) * 0.1 for name, size in adapter.items()}
    sample = TokenSample((1, 2, 3), (1, 2, 9, 3), (4, 5, 6))
    results = []
    for source in (files, shared):
        source.acquire()
        model = DecoderModel(source, adapter, 4, 8.0)
        result = sdpo_step(model, [sample], SdpoConfig(), OptimizerState.fresh(masters, model.layout))
        results.append(result.state.vectors[Part.MASTER])
        source.release()
    assert torch.equal(*results)
    assert all(torch.equal(tensor, before[name]) for name, tensor in vllm_names(files).items())


def test_a_server_of_other_weights_than_the_files_is_refused(
    served: tuple[HostWeights, dict[str, SharedTensor]],
) -> None:
    files, tensors = served
    with pytest.raises(WeightsError, match="serves other weights"):
        SharedWeights(files.shape, CPU, tensors, "another").acquire()


WRITES: Mapping[str, Callable[[Tensor], object]] = {
    "add_": lambda x: x.add_(1),
    "mul_ of a view": lambda x: x.t().mul_(2),
    "fill_ of a slice": lambda x: x[:2].fill_(0),
    "item assignment": lambda x: x.__setitem__(0, 1.0),
    "augmented assignment": lambda x: x.__iadd__(1),
    "out": lambda x: torch.add(torch.ones(4, 3), 1, out=x),
    "copy_ into a reshaped one": lambda x: x.view(-1).copy_(torch.zeros(12)),
    "a piece of a split": lambda x: torch.split(x, 2)[1].zero_(),
    "an optimiser": lambda x: _optimised(x),
}


def _optimised(x: Tensor) -> None:
    parameter = x.requires_grad_()
    parameter.grad = torch.ones(4, 3)
    torch.optim.SGD([parameter], lr=1.0).step()


@pytest.mark.parametrize("write", WRITES)
def test_nothing_writes_to_a_read_only_tensor(write: str) -> None:
    memory = torch.arange(12.0).view(4, 3)
    before = memory.clone()
    with pytest.raises(ReadOnlyError, match="would write"):
        WRITES[write](ReadOnlyTensor.of(memory))
    assert torch.equal(memory, before)


def test_what_is_computed_from_it_is_a_plain_tensor_that_can_be_written_to() -> None:
    weights = ReadOnlyTensor.of(torch.arange(12.0).view(4, 3))
    product = torch.ones(2, 3) @ weights.t()
    assert type(product) is Tensor
    product.add_(torch.ones(2, 4))
    assert type(product.addmm_(torch.ones(2, 3), weights.t())) is Tensor
    assert type(weights.t()) is ReadOnlyTensor
    assert type(weights.index_select(0, torch.tensor([1]))) is Tensor
