"""Weights mapped from a model's files: the same values as copied ones, nothing held, nothing written."""

from __future__ import annotations

import faulthandler
import hashlib
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from claas_trainer.forward.transformer.model import DecoderModel
from claas_trainer.forward.weights.files import Checkpoint
from claas_trainer.forward.weights.host import HostWeights
from claas_trainer.forward.weights.mapped import MappedWeights
from claas_trainer.forward.weights.source import WeightSource
from claas_trainer.sdpo.batch import TokenSample
from claas_trainer.sdpo.errors import WeightsError
from claas_trainer.sdpo.optimizer import OptimizerState
from claas_trainer.sdpo.settings import SdpoConfig
from claas_trainer.sdpo.step import SdpoResult, sdpo_step
from tests.unit.trainer.core import models

FIELDS = ("input_norm", "qkv", "o", "post_norm", "gate_up", "down", "qkv_bias", "q_norm", "k_norm")
SAMPLES = [
    TokenSample((3, 14, 15), (3, 14, 15, 9, 26), (5, 35, 8)),
    TokenSample((9, 7), (9, 7, 93, 23), (84, 62), (-2.0, -3.5)),
]


def both(folder: Path) -> tuple[HostWeights, MappedWeights]:
    shape = models.shape_of(folder)
    return HostWeights.read(folder, shape, models.CPU), MappedWeights(folder, shape)


def stored_as(folder: Path, dtype: torch.dtype) -> None:
    file = folder / "model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", ["qwen3", "qwen2", "llama"])
def test_every_tensor_is_the_one_that_a_copy_has_bit_for_bit(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    stored_as(models.build(kind, tmp_path), dtype)
    copied, mapped = both(tmp_path)
    for index in range(copied.shape.layers):
        for field in FIELDS:
            wanted, found = getattr(copied.layer(index), field), getattr(mapped.layer(index), field)
            assert (wanted is None) == (found is None), field
            assert wanted is None or torch.equal(wanted, found), field
            assert found is None or (found.dtype, found.is_contiguous()) == (torch.float32, True)
    ids = torch.tensor([5, 95, 0, 5])
    assert torch.equal(copied.embed(ids), mapped.embed(ids))
    assert torch.equal(copied.head, mapped.head)
    assert torch.equal(copied.final_norm, mapped.final_norm)


def stepped(weights: WeightSource, folder: Path, checkpointed_layers: int = 0) -> SdpoResult:
    adapter = models.learned(folder)
    shapes = {name: tensor.shape for name, tensor in adapter.tensors.items()}
    model = DecoderModel(weights, shapes, adapter.shape.rank, adapter.shape.alpha)
    model.checkpointed_layers = checkpointed_layers
    state = OptimizerState.fresh(adapter.tensors, model.layout)
    return sdpo_step(model, SAMPLES, SdpoConfig(teacher_top_k=10, kl_reg_weight=0.1), state)


@pytest.mark.parametrize("checkpointed_layers", [0, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", ["qwen3", "qwen2"])
def test_a_step_is_the_one_that_copies_give_bit_for_bit(
    kind: str, dtype: torch.dtype, checkpointed_layers: int, tmp_path: Path
) -> None:
    stored_as(models.build(kind, tmp_path), dtype)
    copied, mapped = both(tmp_path)
    wanted, found = (stepped(each, tmp_path, checkpointed_layers) for each in (copied, mapped))
    assert torch.equal(models.masters(wanted), models.masters(found))
    assert wanted.metrics == found.metrics


def test_steps_leave_the_files_as_they_were(tmp_path: Path) -> None:
    models.build("qwen3", tmp_path)
    file = tmp_path / "model.safetensors"
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    mapped = both(tmp_path)[1]
    for _ in range(3):
        stepped(mapped, tmp_path)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == before


def test_what_is_handed_out_may_be_written_and_changes_nothing(tmp_path: Path) -> None:
    models.build("qwen3", tmp_path)
    mapped = both(tmp_path)[1]
    for field in ("qkv", "o", "input_norm"):
        getattr(mapped.layer(0), field).zero_()
        assert getattr(mapped.layer(0), field).abs().sum() > 0
    mapped.head.zero_()
    assert mapped.head.abs().sum() > 0


def test_a_write_into_the_mapping_itself_ends_the_process_and_changes_no_byte(tmp_path: Path) -> None:
    models.build("qwen3", tmp_path)
    file = tmp_path / "model.safetensors"
    before = file.read_bytes()
    stored = MappedWeights(tmp_path, models.shape_of(tmp_path)).layer(0).stored["o"][0]
    child = os.fork()
    if child == 0:
        try:
            # Its trace would look like a fault of this test.
            faulthandler.disable()
            stored.zero_()
        finally:
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) in (-signal.SIGSEGV, -signal.SIGBUS)
    assert file.read_bytes() == before


def test_nothing_is_read_at_start_but_headers(tmp_path: Path) -> None:
    models.build("qwen3", tmp_path)
    mapped = both(tmp_path)[1]
    assert mapped.resident_bytes == 0
    # A change of the file is seen, so nothing was copied.
    name = "model.layers.0.self_attn.o_proj.weight"
    stored = Checkpoint(tmp_path).find(name, load_file(tmp_path / "model.safetensors")[name].shape)
    with stored.file.open("r+b") as opened:
        opened.seek(stored.start)
        opened.write(bytes(stored.length))
    assert not mapped.layer(0).o.any()


def test_a_folder_that_is_not_of_the_shape_is_refused_at_once(tmp_path: Path) -> None:
    models.build("qwen3", tmp_path)
    shape = models.shape_of(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, file)
    with pytest.raises(WeightsError, match=r"down_proj\.weight is missing"):
        MappedWeights(tmp_path, shape)


def test_nothing_can_be_read_once_it_is_closed(tmp_path: Path) -> None:
    models.build("qwen3", tmp_path)
    mapped = both(tmp_path)[1]
    mapped.close()
    with pytest.raises(IndexError):
        mapped.layer(0)
