"""A base model's `config.json` is read as transformers reads it: what is computed from both is compared."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config

from claas_trainer.forward.peft_model import load_base
from claas_trainer.forward.transformer.model import DecoderModel
from claas_trainer.forward.weights.host import HostWeights
from claas_trainer.model.config_shape import read_shape, shape_of
from claas_trainer.model.lora import LoraShape, new_adapter
from claas_trainer.model.shape import Rope
from claas_trainer.sdpo.batch import TokenBatch
from claas_trainer.sdpo.errors import UnsupportedModelError, WeightsError
from claas_trainer.sdpo.policy import Network
from tests.unit.trainer.core.models import CPU
from tests.unit.trainer.forward.test_weights import FAMILIES, SIZES, a_model

IDS = tuple(range(3, 19))
SMALL: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 1.0,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0}


def by_transformers(folder: Path) -> Tensor:
    """Logits of a model that is made of the folder's configuration; its random weights are left in the folder."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    tied = "lm_head.weight" if config.tie_word_embeddings else ""
    save_file(
        {name: tensor.clone() for name, tensor in model.state_dict().items() if name != tied},
        folder / "model.safetensors",
    )
    with torch.no_grad():
        logits: Tensor = model(input_ids=torch.tensor([IDS]), use_cache=False).logits[0]
    return logits


def by_our_own(folder: Path) -> Tensor:
    weights = HostWeights.read(folder, read_shape(folder), CPU)
    model = DecoderModel(weights, {}, 4, 8.0)
    batch = TokenBatch.of([IDS[:1]], [[*IDS[1:], 0]], CPU)
    return model.logits(model.features(batch, Network.BASE))


def assert_same(document: Mapping[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(document))
        expected = by_transformers(folder)
        torch.testing.assert_close(by_our_own(folder), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "entries",
    [
        {"rope_scaling": {**YARN, "factor": 32.0}, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        {"rope_parameters": {**LLAMA3, "rope_theta": 50.0}, "rope_scaling": {"type": "linear", "factor": 16.0}},
        {"rope_scaling": LLAMA3, "original_max_position_embeddings": 8, "max_position_embeddings": 64},
        {"rope_scaling": YARN, "original_max_position_embeddings": 8, "max_position_embeddings": 64},
        {"rope_scaling": LLAMA3, "rope_theta": 100.0},
        {"rope_scaling": YARN, "rope_theta": 100.0},
        {"rope_scaling": {**YARN, "beta_fast": 0, "beta_slow": 0}, "max_position_embeddings": 64},
        {"rope_scaling": {**YARN, "factor": None}, "original_max_position_embeddings": 16},
        {"rope_scaling": {**YARN, "attention_factor": 0.0}, "max_position_embeddings": 64},
        {"rope_parameters": {"rope_type": "default"}, "rope_theta": 77.0},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10.0}, "rope_theta": 77.0},
        {"rope_scaling": {}, "rope_parameters": {"type": "linear", "factor": 3}, "rope_theta": 7},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_what_is_said_twice_or_left_out_is_computed_as_transformers_does(
    family: str, entries: dict[str, Any]
) -> None:
    assert_same(SMALL | {"model_type": family} | entries)


NUMBERS = st.sampled_from([0, 1, 2.0, 8, 40.0, None])
KIND = st.sampled_from(["default", "linear", "llama3", "yarn", "dynamic", "longrope", "su", None])
STRETCHES = st.fixed_dictionaries(
    {},
    optional={
        "rope_type": KIND,
        "type": KIND,
        "rope_theta": st.sampled_from([10.0, 10_000, 1e6, None]),
        "factor": NUMBERS,
        "low_freq_factor": NUMBERS,
        "high_freq_factor": NUMBERS,
        "beta_fast": NUMBERS,
        "beta_slow": NUMBERS,
        "attention_factor": NUMBERS,
        "mscale": NUMBERS,
        "mscale_all_dim": NUMBERS,
        "truncate": st.sampled_from([True, False, None]),
        "original_max_position_embeddings": st.sampled_from([4, 64, 32768, None]),
        "partial_rotary_factor": st.sampled_from([0.5, 1.0, None]),
        "full_attention": st.just({"rope_type": "default", "rope_theta": 5.0}),
    },
)
# Whole ones, so that more than refusals come of it.
WHOLE = st.builds(
    lambda base, more: {**base, **more},
    st.sampled_from([LLAMA3, YARN, {"type": "linear", "factor": 2.5}, {"rope_type": "default"}]),
    st.fixed_dictionaries(
        {},
        optional={
            "rope_theta": st.sampled_from([10.0, 500_000]),
            "original_max_position_embeddings": st.sampled_from([4, 64, 4096]),
            "attention_factor": st.sampled_from([0.5, 1.3, None]),
            "truncate": st.booleans(),
            "beta_fast": st.sampled_from([0, 2, 32.0, None]),
            "mscale": st.sampled_from([0, 0.7]),
            "mscale_all_dim": st.sampled_from([0, 1.4]),
        },
    ),
)
ROPES = st.fixed_dictionaries(
    {},
    optional={
        "rope_scaling": st.one_of(WHOLE, WHOLE, STRETCHES, st.sampled_from([None, {}])),
        "rope_parameters": st.one_of(WHOLE, WHOLE, STRETCHES, st.none()),
        "rope_theta": st.sampled_from([10.0, 1_000_000]),
        "original_max_position_embeddings": st.sampled_from([8, 100]),
        "max_position_embeddings": st.sampled_from([16, 200, 40960]),
        "head_dim": st.sampled_from([4, 8, 32]),
    },
)
OTHERS: dict[str, list[Any]] = {
    "rope_theta": [None, "10000"],
    "original_max_position_embeddings": [None, "8"],
    "max_position_embeddings": [None, "16"],
    "partial_rotary_factor": [0.5, 1.0, None],
    "head_dim": [5, None],
    "num_key_value_heads": [2, 3, None],
    "rms_norm_eps": [1e-6, 0.5, None],
    "hidden_act": ["silu", "gelu", None],
    "mlp_bias": [True, False],
    "attention_bias": [True, False],
    "tie_word_embeddings": [True, False, None],
    "sliding_window": [16, 64, None],
    "use_sliding_window": [True, False, None],
    "max_window_layers": [0, 1, 28],
    "layer_types": [
        ["full_attention"],
        ["sliding_attention"],
        ["chunked_attention"],
        ["full_attention"] * 2,
        [],
        None,
    ],
    "final_logit_softcapping": [3.0],
    "logit_scale": [0.1],
}
ENTRY = st.sampled_from([(name, value) for name, values in OTHERS.items() for value in values])
DOCUMENTS = st.builds(
    lambda family, ropes, others: {**SMALL, "model_type": family, **ropes, **dict(others)},
    st.sampled_from(["llama", "qwen2", "qwen3", "mistral"]),
    ROPES,
    st.lists(ENTRY, max_size=3),
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(DOCUMENTS)
def test_whatever_the_file_says_it_is_computed_as_transformers_does_or_left_to_it(document: dict[str, Any]) -> None:
    try:
        shape_of(document)
    except UnsupportedModelError:
        return
    assert_same(document)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_shape_is_that_of_the_configuration_that_transformers_saves(family: str, tmp_path: Path) -> None:
    config, _, settings = FAMILIES[family]
    config(**SIZES | settings, rope_parameters={"rope_type": "default", "rope_theta": 5e5}).save_pretrained(tmp_path)
    shape = read_shape(tmp_path)
    name = family.removesuffix("-tied")
    assert shape.family == name
    assert (shape.vocabulary, shape.hidden, shape.intermediate, shape.layers) == (96, 32, 48, 2)
    assert (shape.heads, shape.kv_heads, shape.head_dim) == (4, 2, settings.get("head_dim", 8))
    assert shape.qkv_width == shape.head_dim * 8
    assert shape.rope == Rope.plain(5e5, shape.head_dim)
    assert (shape.qk_norm, shape.qkv_bias) == (name == "qwen3", name == "qwen2")
    assert shape.tied == family.endswith("tied")
    assert shape.sliding_window is None
    parameters = sum(parameter.numel() for parameter in a_model(family).model.layers[0].parameters())
    assert 0 <= parameters - shape.layer_elements < 256  # The rest is norms and biases.


OLD: dict[str, Any] = {key: value for key, value in SIZES.items() if key != "tie_word_embeddings"} | {
    "model_type": "llama",
    "rms_norm_eps": 1e-5,
}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama3", {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}),
        ("yarn", {"factor": 4.0, "beta_fast": 32.0}),
        ("linear", {"factor": 2.0}),
    ],
)
def test_stretched_rope_is_read_from_old_and_new_files_alike(kind: str, settings: dict[str, float]) -> None:
    settings |= {"original_max_position_embeddings": 64.0}
    new = OLD | {"rope_parameters": {"rope_type": kind, "rope_theta": 1e6, **settings}}
    old = OLD | {"rope_theta": 1e6, "rope_scaling": {"type": kind, **settings}}
    rope = shape_of(new).rope
    assert rope == shape_of(old).rope
    assert rope != Rope.plain(1e6, 8)


def test_an_old_file_without_rope_settings_means_transformers_defaults() -> None:
    shape = shape_of(OLD | {"rope_scaling": None})
    assert shape.rope == Rope.plain(10_000.0, 8)
    assert shape.norm_epsilon == 1e-5
    qwen3 = replace(shape, family="qwen3", head_dim=128, qk_norm=True, rope=Rope.plain(10_000.0, 128))
    assert qwen3 == shape_of(OLD | {"model_type": "qwen3"})
    assert shape_of(OLD | {"model_type": "mistral"}).sliding_window == 4096


@pytest.mark.parametrize(
    ("settings", "window"),
    [
        ({"use_sliding_window": False, "max_window_layers": 1}, None),
        ({"use_sliding_window": True, "max_window_layers": 0}, 16),
        ({"use_sliding_window": True, "max_window_layers": 28}, None),
        ({"use_sliding_window": True, "layer_types": ["sliding_attention"] * 2}, 16),
        ({"use_sliding_window": True, "layer_types": ["full_attention"] * 2}, None),
    ],
)
def test_qwens_sliding_window_counts_where_it_is_every_layers(settings: dict[str, Any], window: int | None) -> None:
    config = OLD | {"model_type": "qwen2", "sliding_window": 16} | settings
    assert shape_of(config).sliding_window == window
    assert Qwen2Config(**config).layer_types == [f"{'full' if window is None else 'sliding'}_attention"] * 2


@pytest.mark.parametrize(
    "settings",
    [
        {"model_type": "gemma3_text"},
        {"model_type": None},
        {"hidden_act": "gelu"},
        {"mlp_bias": True},
        {"attention_bias": True},
        {"quantization_config": {"quant_method": "fp8"}},
        {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}},
        {"partial_rotary_factor": 0.5},
        {"hidden_size": None},
        {"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
    ],
    ids=str,
)
def test_a_model_that_the_forward_of_our_own_cant_compute_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError):
        shape_of(OLD | settings)


@pytest.mark.parametrize(
    "entries",
    [
        {"rope_scaling": "linear"},
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        {"rope_scaling": YARN, "rope_theta": 0},
        {"num_hidden_layers": "two"},
        {"hidden_act": "swoosh"},
    ],
    ids=str,
)
def test_a_configuration_that_transformers_can_t_use_either_is_refused_by_the_folder_s_name(
    entries: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMALL | {"model_type": "llama"} | entries))
    with pytest.raises(UnsupportedModelError):
        read_shape(tmp_path)
    with pytest.raises(WeightsError, match=f"{tmp_path}: no usable model"):
        load_base(tmp_path)
    with pytest.raises(WeightsError, match=f"{tmp_path}: no usable model configuration"):
        new_adapter(tmp_path, LoraShape(4, 8), seed=0)
