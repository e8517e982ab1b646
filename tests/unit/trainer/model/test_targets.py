"""Which layers an adapter gets, on models of other shapes than the usual one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from claas_trainer.forward.peft_model import attached, load_base
from claas_trainer.model.lora import LoraShape, new_adapter, write_adapter
from claas_trainer.model.targets import target_layers
from claas_trainer.sdpo.batch import TokenSample
from claas_trainer.sdpo.errors import AdapterError
from claas_trainer.sdpo.settings import SdpoConfig
from tests.unit.trainer.core.models import peft_way, step

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
MODELS: dict[str, dict[str, Any]] = {
    "qwen3": SIZES,
    "phi3": SIZES,
    "qwen2_moe": SIZES | {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    "mixtral": SIZES | {"num_local_experts": 4},
    "gemma3": {"text_config": SIZES, "vision_config": TOWER | {"image_size": 56, "patch_size": 14}},
    "gpt2": {"n_embd": 32, "n_layer": 1, "n_head": 4, "vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2},
}
SEVEN = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}


@cache
def empty(kind: str) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **MODELS[kind]))


def build(kind: str, folder: Path, **settings: Any) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **MODELS[kind] | settings)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


def last_names(layers: Mapping[str, object]) -> set[str]:
    return {name.rpartition(".")[2] for name in layers}


@pytest.mark.parametrize("wanted", [(), "all-linear", "ALL-LINEAR"])
@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("qwen3", SEVEN),
        ("phi3", {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),
        ("qwen2_moe", SEVEN),
        ("mixtral", ATTENTION),
        ("gemma3", SEVEN),
    ],
)
def test_left_out_the_layers_are_those_that_fit_the_model(
    kind: str, names: set[str], wanted: tuple[str, ...] | str
) -> None:
    layers = target_layers(empty(kind), wanted)
    assert last_names(layers) == names
    assert not [name for name in layers if "vision" in name or "experts." in name]


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        (("q_proj",), 2),
        (("self_attn.q_proj", "v_proj"), 4),
        (("model.layers.1.mlp.up_proj",), 1),
        (r".*\.(q|v)_proj", 4),
        (r"model\.layers\.0\..*_proj", 7),
        ("model.layers.1.mlp.up_proj", 1),
    ],
)
def test_lists_and_regular_expressions_mean_what_they_mean_to_peft(wanted: tuple[str, ...] | str, count: int) -> None:
    layers = target_layers(empty("qwen3"), wanted)
    assert len(layers) == count
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", **SIZES))
    config = LoraConfig(r=4, target_modules=wanted if isinstance(wanted, str) else list(wanted))
    found = get_peft_model(base, config).targeted_module_names
    assert set(found) == set(layers)


@pytest.mark.parametrize(
    ("kind", "wanted", "said"),
    [
        ("qwen3", ("q_proj", "embed_tokens"), "embed_tokens is no linear layer but Embedding"),
        ("qwen3", ("q_proj", "lm_head"), "lm_head is the head"),
        ("qwen3", ("input_layernorm",), "input_layernorm is no linear layer but Qwen3RMSNorm"),
        ("qwen3", ("wq_proj",), "has no layer named wq_proj; there are down_proj, gate_proj"),
        ("qwen3", ("all-linear",), "write it as text"),
        ("qwen3", "q_proj", "matches no layer's whole name, such as model.layers.0.self_attn.q_proj"),
        ("qwen3", "(", "'(' is neither all-linear nor a regular expression: missing )"),
        ("qwen3", r".*(q_proj|embed_tokens)", "embed_tokens is no linear layer"),
        ("qwen3", r".*(q_proj|head)", "lm_head is the head"),
        ("qwen3", r".*self_attn", "no linear layer but Qwen3Attention"),
        ("phi3", ("q_proj",), "no layer named q_proj; there are down_proj, gate_up_proj, o_proj, qkv_proj"),
        ("mixtral", ("q_proj", "gate_up_proj"), "gate_up_proj is no linear layer here: the experts"),
        ("mixtral", ("q_proj", "gate"), "gate is no linear layer but MixtralTopKRouter"),
        ("mixtral", ("w1",), "no layer named w1; there are k_proj, o_proj, q_proj, v_proj"),
        ("gemma3", ("out_proj",), "out_proj is outside the language model"),
        ("gpt2", (), "no linear layers"),
    ],
)
def test_what_can_t_be_trained_is_refused_and_what_there_is_listed(
    kind: str, wanted: tuple[str, ...] | str, said: str
) -> None:
    with pytest.raises(AdapterError, match=re.escape(said)) as caught:
        target_layers(empty(kind), wanted)
    assert kind == "gpt2" or "; there are " in str(caught.value)


SAMPLES = [
    TokenSample((5, 6, 7), (5, 6, 8, 9), (10, 11, 12, 13)),
    TokenSample(tuple(range(20, 60)), tuple(range(20, 70)), tuple(range(30, 50))),
]
CONFIG = SdpoConfig(learning_rate=1e-2, teacher_top_k=10)


@pytest.mark.parametrize("kind", ["phi3", "qwen2_moe", "mixtral", "gemma3"])
def test_a_step_moves_every_layer_that_was_chosen_and_peft_reads_the_adapter(kind: str, tmp_path: Path) -> None:
    folder = build(kind, tmp_path / "model")
    adapter = new_adapter(folder, LoraShape(4, 8), seed=0)
    base = load_base(folder)
    result = step(peft_way(base), adapter, SAMPLES, CONFIG)
    for name, tensor in result.state.masters.items():
        assert not torch.equal(tensor, adapter.tensors[name]) or ".lora_A." in name, name
    (tmp_path / "adapter").mkdir()
    write_adapter(tmp_path / "adapter", adapter)
    read = PeftModel.from_pretrained(base, tmp_path / "adapter")
    parameters = {name for name, _ in read.named_parameters() if ".lora_" in name}
    assert {name.replace(".default.", ".") for name in parameters} == adapter.tensors.keys()


def test_an_adapter_is_attached_where_its_tensors_are_whatever_its_configuration_says(tmp_path: Path) -> None:
    folder = build("gemma3", tmp_path)
    adapter = new_adapter(folder, LoraShape(4, 8), seed=0)
    widest = type(adapter)(LoraShape(4, 8, "all-linear"), adapter.tensors)
    with attached(load_base(folder), widest) as model:
        assert model.trainable().keys() == adapter.tensors.keys()
