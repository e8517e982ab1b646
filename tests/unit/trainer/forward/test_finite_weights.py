"""Weights that are NaN or infinite are found where they are read, and named with their file."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from claas_trainer.forward.peft_model import load_base
from claas_trainer.forward.weights.finite import is_finite, search
from claas_trainer.sdpo.errors import WeightsError
from tests.unit.trainer.core.models import build, host_weights

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(DTYPES), st.integers(1, 200), st.data(), st.sampled_from([math.nan, math.inf, -math.inf, 0.0]))
def test_a_single_value_that_is_no_number_is_found_wherever_it_is(
    dtype: torch.dtype, size: int, data: st.DataObject, value: float
) -> None:
    tensor = torch.full((size,), torch.finfo(dtype).max, dtype=dtype)
    tensor[data.draw(st.integers(0, size - 1))] = value
    assert is_finite(tensor) == math.isfinite(value)


def test_what_has_no_such_values_is_finite() -> None:
    assert is_finite(torch.tensor([7]))
    assert is_finite(torch.empty(0))
    assert is_finite(torch.zeros(3).to(torch.float8_e4m3fn))


def spoilt(folder: Path, name: str, value: float, row: int = 3) -> Path:
    """A model with one wrong value."""
    file = build("qwen2", folder) / "model.safetensors"
    tensors = load_file(file)
    tensors[name][row] = value
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.down_proj.weight", "model.layers.0.self_attn.k_proj.bias", "lm_head.weight"]
)
def test_a_base_with_one_is_refused_by_tensor_file_and_remedy(name: str, value: float, tmp_path: Path) -> None:
    folder = spoilt(tmp_path, name, value)
    for read in (host_weights, search):
        with pytest.raises(WeightsError, match=rf"model\.safetensors: tensor {name} has \d+ values.*bfloat16"):
            read(folder)
    with pytest.raises(WeightsError, match=f"{folder}: weight {name}"):
        load_base(folder)


def test_an_embedding_that_no_sample_has_is_nobody_s_business_and_one_that_it_has_is_refused(tmp_path: Path) -> None:
    weights = host_weights(spoilt(tmp_path, "model.embed_tokens.weight", math.nan, row=5))
    weights.expect(torch.tensor([1, 2, 6]))
    with pytest.raises(WeightsError, match=r"embed_tokens.*download"):
        weights.expect(torch.tensor([1, 5]))
