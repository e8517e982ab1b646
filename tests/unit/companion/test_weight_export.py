"""What vLLM's worker tells of its weights, with stand-ins for its configuration and its parameters."""

from __future__ import annotations

import base64
import re
from types import SimpleNamespace

import pytest
import torch

from claas_vllm import WeightExport, weight_export
from claas_vllm.weight_export import sharing_refusal


def config(
    *, sleep: bool = False, quantization: str | None = None, world: int = 1, device: str = "cuda"
) -> SimpleNamespace:
    return SimpleNamespace(
        model_config=SimpleNamespace(enable_sleep_mode=sleep, quantization=quantization),
        parallel_config=SimpleNamespace(world_size=world),
        device_config=SimpleNamespace(device_type=device),
    )


def worker(parameters: dict[str, torch.Tensor], found: SimpleNamespace | None = None) -> WeightExport:
    extension = WeightExport()
    extension.vllm_config = found or config()
    extension.model_runner = SimpleNamespace(model=SimpleNamespace(named_parameters=parameters.items))
    return extension


@pytest.fixture(autouse=True)
def handles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Handles made of addresses: there is no GPU."""
    monkeypatch.setattr(weight_export, "_ipc_handle", lambda address: (address.to_bytes(64, "little"), 256))


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (config(), None),
        (config(sleep=True), "sleep mode's allocator"),
        (config(quantization="fp8"), r"quantised \(fp8\)"),
        (config(world=2), "over 2 GPUs"),
        (config(device="cpu"), "not on a GPU but on cpu"),
    ],
)
def test_weights_that_cannot_be_shared_are_refused_with_the_reason(found: SimpleNamespace, said: str | None) -> None:
    refusal = sharing_refusal(found)
    if said is None:
        assert refusal is None
    else:
        assert refusal is not None
        assert re.search(said, refusal)
        assert worker({}, found).claas_export_weights() == {"refusal": refusal}


def test_each_parameter_is_told_by_its_own_name_with_shape_dtype_handle_and_offset() -> None:
    weight = torch.zeros(4, 3, dtype=torch.bfloat16)
    answer = worker({"model.layers.0.self_attn.qkv_proj.base_layer.weight": weight}).claas_export_weights()
    assert answer["refusal"] is None
    (told,) = answer["tensors"]
    assert told["name"] == "model.layers.0.self_attn.qkv_proj.weight"
    assert (told["shape"], told["dtype"], told["offset"]) == ([4, 3], "bfloat16", 256)
    assert base64.b64decode(told["handle"]) == weight.data_ptr().to_bytes(64, "little")


@pytest.mark.parametrize(
    "weight", [torch.zeros(2, dtype=torch.int8), torch.zeros(2), torch.zeros(3, 2, dtype=torch.bfloat16).t()]
)
def test_a_parameter_that_was_repacked_is_refused_by_its_name(weight: torch.Tensor) -> None:
    answer = worker({"model.x": weight}).claas_export_weights()
    assert "model.x" in answer["refusal"]
    assert "repacked" in answer["refusal"]


def test_the_fingerprint_follows_names_shapes_and_dtypes_and_no_addresses() -> None:
    def fingerprint(*shape: int, name: str = "a", dtype: torch.dtype = torch.bfloat16) -> str:
        found: str = worker({name: torch.zeros(shape, dtype=dtype)}).claas_export_weights()["fingerprint"]
        return found

    assert fingerprint(2, 3) == fingerprint(2, 3)
    others = {fingerprint(3, 2), fingerprint(2, 3, name="b"), fingerprint(2, 3, dtype=torch.float16)}
    assert len(others | {fingerprint(2, 3)}) == 4


def test_the_export_has_no_name_that_vllms_worker_may_have() -> None:
    """vLLM refuses an extension whose attributes its worker has too."""
    assert [name for name in dir(WeightExport) if not name.startswith("__")] == ["claas_export_weights"]
