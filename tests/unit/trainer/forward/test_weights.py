"""Base weights: read from files into the layout that is computed on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from claas_trainer.forward.weights import files
from claas_trainer.forward.weights.files import Checkpoint, read_into
from claas_trainer.forward.weights.host import HostWeights
from claas_trainer.forward.weights.random import RandomWeights
from claas_trainer.forward.weights.source import WeightSource
from claas_trainer.model.config_shape import read_shape
from claas_trainer.model.shape import ModelShape
from claas_trainer.sdpo.errors import WeightsError

CPU = torch.device("cpu")
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
FAMILIES: dict[str, tuple[type[PretrainedConfig], type[PreTrainedModel], dict[str, Any]]] = {
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 16}),
    "qwen3-tied": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "mistral": (MistralConfig, MistralForCausalLM, {"head_dim": 16, "sliding_window": None}),
}


def a_model(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    config, model, settings = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        made = model(config(**SIZES | settings))
        for parameter in made.parameters():  # Norms and biases are constant in a new model.
            torch.nn.init.normal_(parameter)
    return made.to(dtype)


def shape_of(folder: Path) -> ModelShape:
    return read_shape(folder)


def read(folder: Path, device: torch.device = CPU, dtype: torch.dtype | None = None) -> HostWeights:
    return HostWeights.read(folder, shape_of(folder), device, dtype)


def assert_holds(weights: WeightSource, model: PreTrainedModel) -> None:
    """The weights are the model's own, q, k and v fused, gate and up too."""
    state = model.state_dict()

    def equal(found: Tensor | None, *names: str) -> None:
        if names[0] not in state:
            assert found is None
            return
        assert found is not None
        assert found.storage_offset() * found.element_size() % 256 == 0
        torch.testing.assert_close(
            found.cpu(), torch.cat([state[name] for name in names]).to(weights.dtype), rtol=0, atol=0
        )

    for index in range(weights.shape.layers):
        layer, place = weights.layer(index), f"model.layers.{index}."
        attention = place + "self_attn."
        equal(layer.input_norm, place + "input_layernorm.weight")
        equal(layer.post_norm, place + "post_attention_layernorm.weight")
        equal(layer.qkv, *(f"{attention}{part}_proj.weight" for part in "qkv"))
        equal(layer.qkv_bias, *(f"{attention}{part}_proj.bias" for part in "qkv"))
        equal(layer.o, attention + "o_proj.weight")
        equal(layer.gate_up, place + "mlp.gate_proj.weight", place + "mlp.up_proj.weight")
        equal(layer.down, place + "mlp.down_proj.weight")
        equal(layer.q_norm, attention + "q_norm.weight")
        equal(layer.k_norm, attention + "k_norm.weight")
    equal(weights.final_norm, "model.norm.weight")
    equal(weights.head, "lm_head.weight")
    ids = torch.tensor([5, 95, 0, 5])
    embedded = weights.embed(ids.to(weights.device)).cpu()
    assert torch.equal(embedded, state["model.embed_tokens.weight"][ids].to(weights.dtype))


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(scope="session")
def untied_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("untied")
    a_model("qwen3").save_pretrained(folder)
    return folder


@pytest.fixture
def broken(untied_folder: Path, tmp_path: Path) -> Path:
    """A copy of a model's folder, to be broken."""
    return Path(shutil.copytree(untied_folder, tmp_path / "broken"))


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_files_of_every_family_and_dtype_are_read_into_the_fused_layout(
    family: str, stored: torch.dtype, device: torch.device, tmp_path: Path
) -> None:
    model = a_model(family, stored)
    model.save_pretrained(tmp_path)
    weights = read(tmp_path, device)
    weights.acquire()
    sixteen_bit = torch.bfloat16 if stored == torch.float32 else stored
    assert weights.dtype == (sixteen_bit if device.type == "cuda" else torch.float32)
    assert_holds(weights, model)
    weights.release()
    weights.close()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_are_kept_in_the_dtype_that_is_asked_for(dtype: torch.dtype, tmp_path: Path) -> None:
    model = a_model("qwen2", torch.bfloat16)
    model.save_pretrained(tmp_path)
    weights = read(tmp_path, dtype=dtype)
    assert weights.dtype == weights.layer(0).input_norm.dtype == dtype
    assert_holds(weights, model)


def test_weights_can_be_filled_in_by_their_stored_names(device: torch.device, untied_folder: Path) -> None:
    model = a_model("qwen3")
    state = model.state_dict()

    def fill(name: str, target: Tensor) -> None:
        target.copy_(state[name])

    weights = HostWeights.filled(shape_of(untied_folder), device, torch.bfloat16, fill)
    weights.acquire()
    assert_holds(weights, model)
    weights.close()


def test_shards_are_read_as_one_file_is_and_have_the_same_digest(untied_folder: Path, tmp_path: Path) -> None:
    model = a_model("qwen3")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    weights = read(tmp_path)
    assert_holds(weights, model)
    assert weights.digest == read(untied_folder).digest


def test_files_without_an_index_and_names_without_the_prefix_are_read_and_have_the_same_digest(
    untied_folder: Path, broken: Path
) -> None:
    tensors = load_file(broken / "model.safetensors")
    (broken / "model.safetensors").unlink()
    head = {"lm_head.weight": tensors.pop("lm_head.weight")}
    save_file(head, broken / "head.safetensors")
    save_file({name.removeprefix("model."): tensor for name, tensor in tensors.items()}, broken / "rest.safetensors")
    weights = read(broken)
    assert_holds(weights, a_model("qwen3"))
    assert weights.digest == read(untied_folder).digest


@pytest.mark.parametrize("place", [0, 16, -1], ids=["start", "middle", "end"])
def test_the_digest_tells_a_changed_weight(untied_folder: Path, broken: Path, place: int) -> None:
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][place] += 1
    save_file(tensors, broken / "model.safetensors")
    assert read(broken).digest != read(untied_folder).digest


def test_a_tied_model_may_hold_its_head_again_but_no_other_head(tmp_path: Path) -> None:
    model = a_model("qwen3-tied")
    model.save_pretrained(tmp_path)
    digest = read(tmp_path).digest
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    weights = read(tmp_path)
    assert_holds(weights, model)
    assert weights.digest == digest
    tensors["lm_head.weight"] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"lm_head\.weight differs"):
        read(tmp_path)


@pytest.mark.parametrize("family", ["qwen3", "qwen3-tied"])
def test_announced_tokens_have_the_embeddings_of_the_whole_table(
    family: str, device: torch.device, tmp_path: Path
) -> None:
    model = a_model(family, torch.bfloat16)
    model.save_pretrained(tmp_path)
    weights = read(tmp_path, device)
    table = model.state_dict()["model.embed_tokens.weight"].to(weights.dtype)
    for announced in ([7, 3, 7, 95, 0], [1, 2]):
        ids = torch.tensor(announced)
        weights.expect(ids)
        weights.acquire()
        assert torch.equal(weights.embed(ids.to(device)).cpu(), table[ids])
        weights.release()


def test_a_token_that_was_not_announced_is_embedded_as_nan(untied_folder: Path, device: torch.device) -> None:
    weights = read(untied_folder, device)
    weights.expect(torch.tensor([4, 6]))
    weights.acquire()
    embedded = weights.embed(torch.tensor([6, 5, 95, 0, 4], device=device))
    assert embedded.isnan().all(1).tolist() == [False, True, True, True, False]


def test_acquire_takes_the_resident_bytes_and_release_gives_them_back(
    untied_folder: Path, device: torch.device
) -> None:
    def allocated() -> int:
        return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0

    weights = read(untied_folder, device)
    whole, before = weights.resident_bytes, allocated()
    for _ in range(2):
        weights.acquire()
        weights.acquire()
        assert allocated() - before == weights.resident_bytes
        weights.release()
        weights.release()
        assert allocated() == before
        weights.expect(torch.tensor([1]))
    assert weights.resident_bytes < whole or device.type == "cpu"


def test_tensors_are_converted_in_pieces_and_into_strided_destinations(
    untied_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_CHUNK_ELEMENTS", 100)
    name = "model.layers.0.mlp.up_proj.weight"
    stored = Checkpoint(untied_folder).find(name, (48, 32))
    wanted = a_model("qwen3").state_dict()[name]
    converted, strided = torch.empty(48, 32, dtype=torch.float64), torch.empty(32, 48).T
    for destination in (converted, strided):
        read_into(stored, destination)
        assert torch.equal(destination.to(torch.float32), wanted)


def write(file: Path, header: object, data: bytes = b"") -> None:
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def cut(length: int) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(file.read_bytes()[:length])


def a_folder_of_that_name(file: Path) -> None:
    file.unlink()
    (file.parent / "other.safetensors").mkdir()


BROKEN_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "no safetensors files"),
    "a folder": (a_folder_of_that_name, "directory"),
    "empty": (cut(0), "cut short"),
    "cut in the header": (cut(20), "cut short"),
    "cut in the data": (cut(-1), "cut short"),
    "longer than its header says": (lambda file: file.write_bytes(file.read_bytes() + b"\0"), "overwritten"),
    "a Git LFS pointer": (
        lambda file: file.write_bytes(b"version https://git-lfs.github.com/spec/v1"),
        "LFS pointer",
    ),
    "header too long": (
        lambda file: file.write_bytes((10**8 + 1).to_bytes(8, "little")),
        "header of 100000001 bytes",
    ),
    "header no JSON": (lambda file: file.write_bytes((2).to_bytes(8, "little") + b"\xff{"), "no JSON"),
    "header a list": (lambda file: write(file, []), "no mapping"),
    "no offsets": (lambda file: write(file, {"a": {"dtype": "F32", "shape": [1]}}), "tensor a has a broken entry"),
    "negative width": (lambda file: write(file, {"a": entry("F32", [-1], 0, 4)}, bytes(4)), "broken entry"),
    "offsets backwards": (lambda file: write(file, {"a": entry("F32", [1], 4, 0)}, bytes(4)), "broken entry"),
    "wrong length": (lambda file: write(file, {"a": entry("F32", [2], 0, 4)}, bytes(4)), "tensor a has 4 bytes"),
    "overlap": (
        lambda file: write(file, {"a": entry("F16", [2], 0, 4), "b": entry("F16", [2], 2, 6)}, bytes(6)),
        "tensor b does not begin where",
    ),
    "gap": (lambda file: write(file, {"a": entry("F16", [1], 2, 4)}, bytes(4)), "tensor a does not begin where"),
}


@pytest.mark.parametrize("case", BROKEN_FILES)
def test_a_broken_file_is_refused(broken: Path, case: str) -> None:
    harm, message = BROKEN_FILES[case]
    harm(broken / "model.safetensors")
    with pytest.raises(WeightsError, match=message):
        read(broken)


@pytest.mark.parametrize(
    ("name", "replacement", "message"),
    [
        ("model.layers.1.self_attn.k_proj.weight", None, "k_proj.weight is missing"),
        ("lm_head.weight", None, "lm_head.weight is missing"),
        ("model.embed_tokens.weight", None, "embed_tokens.weight is missing"),
        ("model.layers.0.self_attn.q_norm.weight", torch.ones(8), r"q_norm.weight is \[8\], not \[16\]"),
        ("model.norm.weight", torch.ones(32, dtype=torch.int64), "of dtype I64; store it as one of BF16, F16, F32"),
    ],
)
def test_a_tensor_that_does_not_fit_the_configuration_is_refused(
    broken: Path, name: str, replacement: Tensor | None, message: str
) -> None:
    tensors = load_file(broken / "model.safetensors")
    del tensors[name]
    save_file(tensors | ({} if replacement is None else {name: replacement}), broken / "model.safetensors")
    with pytest.raises(WeightsError, match=message):
        read(broken)


def test_missing_shards_and_broken_indices_are_refused(broken: Path) -> None:
    index = broken / "model.safetensors.index.json"
    shard = (broken / "model.safetensors").rename(broken / "one.safetensors")
    places = dict.fromkeys(load_file(shard), shard.name)
    for broken_index, message in (
        ({"weight_map": places | {"extra": shard.name}}, "tensor extra, which .* names, is missing"),
        ({"weight_map": places | {"extra": "two.safetensors"}}, "two.safetensors: No such file"),
        ({"weight_map": places | {"extra": "../one.safetensors"}}, "no file name"),
        ({"weight_map": []}, "no readable weight_map"),
        ({}, "no readable weight_map"),
    ):
        index.write_text(json.dumps(broken_index), encoding="utf-8")
        with pytest.raises(WeightsError, match=message):
            read(broken)
    index.unlink()
    shutil.copy(shard, broken / "two.safetensors")
    with pytest.raises(WeightsError, match="is in another file too"):
        read(broken)


def test_a_file_that_was_cut_since_its_header_was_read_is_refused(broken: Path) -> None:
    stored = Checkpoint(broken).find("model.norm.weight", (32,))
    cut(stored.start + 8)(stored.file)
    with pytest.raises(WeightsError, match="cut short"):
        read_into(stored, torch.empty(32))


@pytest.mark.parametrize("family", FAMILIES)
def test_random_weights_have_the_models_shapes_and_their_seed_decides(
    family: str, device: torch.device, tmp_path: Path
) -> None:
    a_model(family).save_pretrained(tmp_path)
    shape, stored = shape_of(tmp_path), read(tmp_path, device)
    stored.acquire()
    first, again, other = (RandomWeights(shape, device, seed=seed) for seed in (1, 1, 2))
    for field in fields(first.layer(1)):
        mine, theirs = getattr(first.layer(1), field.name), getattr(stored.layer(1), field.name)
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert (mine.shape, mine.dtype, mine.device) == (theirs.shape, theirs.dtype, theirs.device)
            assert torch.equal(mine, getattr(again.layer(1), field.name))
            assert not torch.equal(mine, getattr(other.layer(1), field.name))
    assert first.head.shape == stored.head.shape
    assert first.head.float().std().item() == pytest.approx(0.02, rel=0.1)
    assert first.final_norm.float().mean().item() == pytest.approx(1, abs=0.02)
    ids = torch.tensor([3, 3, 95], device=device)
    assert torch.equal(first.embed(ids), first.head[ids]) == shape.tied
