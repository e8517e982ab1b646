"""Which base models the trainer's own forward takes, and what tells one from another."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.lora import LoraSpec
from claas_trainer.engines.local.base_model import base_fingerprint, check_base, check_decoder
from claas_trainer.errors import TrainerError
from claas_trainer.forward.weights.host import HostWeights
from claas_trainer.model.config_shape import read_shape
from claas_trainer.model.lora import AdapterWeights, LoraShape, new_adapter
from claas_trainer.sdpo.errors import AdapterError, UnsupportedModelError
from claas_trainer.store.record import ForwardKind, LocalProvenance, VersionRecord
from claas_trainer.store.versions import StoredVersion
from tests.builders.models import build_tiny_qwen3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_qwen3(tmp_path_factory.mktemp("model"))


def version(fingerprint: str | None, folder: Path) -> StoredVersion:
    step = None
    if fingerprint is not None:
        step = LocalProvenance(
            parent_digest="0",
            base_fingerprint=fingerprint,
            samples_digest="1",
            forward=ForwardKind.DECODER,
            device="CPU",
            compute_dtype="float32",
            micro_batch_tokens=1,
            tile_rows=1,
        )
    record = VersionRecord(
        number=4, lora_id="a", created=datetime.now(UTC), engine="local", base_model="b", lora=LoraSpec(), step=step
    )
    return StoredVersion(folder, record)


def test_the_fingerprint_is_that_of_the_weights_that_are_read(model: Path) -> None:
    shape = read_shape(model)
    read = HostWeights.read(model, shape, torch.device("cpu"))
    assert base_fingerprint(model, shape) == f"tensors:{read.digest}"


def test_models_of_one_shape_and_other_weights_have_other_fingerprints(model: Path, tmp_path: Path) -> None:
    other = build_tiny_qwen3(tmp_path, seed=1)
    shape = read_shape(model)
    assert read_shape(other) == shape
    assert base_fingerprint(other, shape) != base_fingerprint(model, shape)


def test_without_a_shape_configuration_and_headers_are_compared(model: Path, tmp_path: Path) -> None:
    found = base_fingerprint(model, None)
    assert found.startswith("headers:")
    copied = build_tiny_qwen3(tmp_path)
    assert base_fingerprint(copied, None) == found
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    assert base_fingerprint(copied, None) != found


def test_a_version_of_another_base_is_refused_with_its_number_and_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"version 4 .*another base model.*make a new adapter") as caught:
        check_base(version("tensors:aaaa", tmp_path), "tensors:bbbb")
    assert caught.value.reason is FailureReason.INVALID_INPUT


@pytest.mark.parametrize("recorded", [None, "tensors:aaaa", "headers:aaaa"])
def test_the_same_base_and_one_that_can_t_be_compared_pass(recorded: str | None, tmp_path: Path) -> None:
    check_base(version(recorded, tmp_path), "tensors:aaaa")


def test_samples_up_to_the_sliding_window_are_computed_by_the_trainer_s_own_forward(tmp_path: Path) -> None:
    config = {
        "model_type": "mistral",
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "sliding_window": 100,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape, nothing = read_shape(tmp_path), AdapterWeights(LoraShape(4, 8), {})
    check_decoder(shape, nothing, 100)
    with pytest.raises(UnsupportedModelError, match="101 tokens and the sliding window is 100"):
        check_decoder(shape, nothing, 101)


def test_an_adapter_on_other_modules_is_for_the_generic_forward_and_one_that_does_not_fit_is_for_none(
    model: Path,
) -> None:
    shape = read_shape(model)
    adapter = new_adapter(model, LoraShape(4, 8), seed=0)
    check_decoder(shape, adapter, 10)
    on_embedding = {"base_model.model.model.embed_tokens.lora_embedding_A": torch.zeros(4, 4)}
    with pytest.raises(UnsupportedModelError, match="embed_tokens"):
        check_decoder(shape, AdapterWeights(adapter.shape, {**adapter.tensors, **on_embedding}), 10)
    with pytest.raises(AdapterError, match="another base model"):
        check_decoder(shape, AdapterWeights(LoraShape(8, 8), adapter.tensors), 10)


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_a_configuration_that_can_t_be_read_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(TrainerError, match=r"config\.json") as caught:
        read_shape(tmp_path)
    assert caught.value.reason is FailureReason.MODEL_NOT_FOUND
