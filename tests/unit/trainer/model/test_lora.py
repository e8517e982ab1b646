"""Adapters as PEFT's folder, made without the base model's weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from claas_trainer.forward.peft_model import attached
from claas_trainer.model.lora import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    AdapterWeights,
    LoraShape,
    new_adapter,
    read_adapter,
    write_adapter,
)
from claas_trainer.sdpo.errors import AdapterError


def test_a_new_adapter_needs_the_configuration_alone(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((model_folder / "config.json").read_bytes())
    made = new_adapter(tmp_path, LoraShape(4, 8), seed=1)
    again = new_adapter(tmp_path, LoraShape(4, 8), seed=1)
    assert all(torch.equal(made.tensors[name], again.tensors[name]) for name in made.tensors)
    assert made.shape.target_modules == (
        "down_proj",
        "gate_proj",
        "k_proj",
        "o_proj",
        "q_proj",
        "up_proj",
        "v_proj",
    )


def test_a_new_adapters_shapes_follow_the_head_dim_of_the_configuration(fresh: AdapterWeights) -> None:
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    assert fresh.tensors[f"{prefix}.lora_A.weight"].shape == (4, 32)
    assert fresh.tensors[f"{prefix}.lora_B.weight"].shape == (64, 4)


def test_a_new_adapter_changes_nothing_and_can_learn(fresh: AdapterWeights) -> None:
    for name, tensor in fresh.tensors.items():
        assert tensor.any() == (".lora_A." in name), name


def test_only_the_named_modules_get_an_adapter(model_folder: Path) -> None:
    made = new_adapter(model_folder, LoraShape(2, 4, ("q_proj", "v_proj")), seed=0)
    assert len(made.tensors) == 2 * 2 * 2
    assert all(".q_proj." in name or ".v_proj." in name for name in made.tensors)


def test_unknown_modules_are_refused_by_name(model_folder: Path) -> None:
    with pytest.raises(AdapterError, match="warp_proj"):
        new_adapter(model_folder, LoraShape(2, 4, ("warp_proj",)), seed=0)


def test_an_adapter_through_its_folder_is_the_same(adapter: AdapterWeights, tmp_path: Path) -> None:
    write_adapter(tmp_path, adapter)
    back = read_adapter(tmp_path)
    assert back.shape == adapter.shape
    assert back.tensors.keys() == adapter.tensors.keys()
    assert all(torch.equal(back.tensors[name], adapter.tensors[name]) for name in back.tensors)


def test_peft_itself_loads_the_folder_and_computes_what_we_do(
    base: PreTrainedModel, adapter: AdapterWeights, tmp_path: Path
) -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad(), attached(base, adapter) as model:
        ours = model.peft(input_ids=ids).logits
    write_adapter(tmp_path, adapter)
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(base, tmp_path)(input_ids=ids).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_dora", True),
        ("use_rslora", True),
        ("bias", "all"),
        ("modules_to_save", ["lm_head"]),
        ("rank_pattern", {"q_proj": 8}),
        ("peft_type", "IA3"),
        ("r", "eight"),
        ("target_modules", 7),
    ],
)
def test_an_adapter_that_is_not_plain_lora_is_refused_by_the_name_of_the_field(
    field: str, value: object, adapter: AdapterWeights, tmp_path: Path
) -> None:
    write_adapter(tmp_path, adapter)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config | {field: value}))
    with pytest.raises(AdapterError, match=f"{field}( |:)"):
        read_adapter(tmp_path)


@pytest.mark.parametrize("broken", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_missing_or_broken_file_is_refused(broken: str, adapter: AdapterWeights, tmp_path: Path) -> None:
    write_adapter(tmp_path, adapter)
    (tmp_path / broken).write_bytes(b"not what it was")
    with pytest.raises(AdapterError, match="no readable adapter"):
        read_adapter(tmp_path)
    (tmp_path / broken).unlink()
    with pytest.raises(AdapterError, match="no readable adapter"):
        read_adapter(tmp_path)
