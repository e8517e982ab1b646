"""What is read of a base model's configuration and tokenizer, without loading what models are made with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Qwen2Tokenizer

from claas_trainer.errors import InputError
from claas_trainer.model.config import ModelConfig, read_config
from claas_trainer.model.hub_tokenizer import direct_class, read_tokenizer
from claas_trainer.samples.reading import ModelLimits
from tests.builders.models import build_tiny_qwen3

QWEN = {"model_type": "qwen3", "vocab_size": 300, "max_position_embeddings": 2048, "dtype": "bfloat16"}
TEXT = "Hi there!\n\n  It's 12,345 o'clock – naïve 🎉 <|im_end|>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_qwen3(tmp_path_factory.mktemp("qwen3"))


def changed(folder: Path, target: Path, **names: Mapping[str, object]) -> Path:
    """A copy of a model's small files, with some of their entries replaced."""
    for file in folder.glob("*.j*"):
        (target / file.name).write_bytes(file.read_bytes())
    for name, entries in names.items():
        path = target / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | dict(entries)))
    return target


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (QWEN, ModelConfig(ModelLimits(300, 2048), torch.bfloat16)),
        (
            QWEN | {"dtype": None, "torch_dtype": "float16"} | {"vocab_size": 7},
            ModelConfig(ModelLimits(7, 2048), torch.float16),
        ),
        (
            {"model_type": "gemma3", "dtype": "float32", "text_config": QWEN},
            ModelConfig(ModelLimits(300, 2048), torch.float32),
        ),
    ],
    ids=["its own", "the older name", "of its text part"],
)
def test_limits_and_dtype_are_as_the_file_says(
    document: dict[str, object], expected: ModelConfig, tmp_path: Path
) -> None:
    kept = {name: value for name, value in document.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(kept))
    assert read_config(tmp_path) == expected


def test_what_the_file_leaves_out_is_as_transformers_has_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 300}))
    assert read_config(tmp_path) == ModelConfig(ModelLimits(300, 2048), None)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        '{"model_type": "nobody"}',
        '"text"',
        '{"model_type": "llama", "num_hidden_layers": "two"}',
        '{"model_type": "llama", "rope_scaling": "linear"}',
        '{"model_type": "llama", "rope_scaling": {"rope_type": "llama3"}}',
        '{"model_type": "llama", "num_attention_heads": 0}',
        '{"model_type": ["llama"]}',
    ],
)
def test_a_configuration_that_is_none_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json"):
        read_config(tmp_path)


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize(
    "named", ["TokenizersBackend", "PreTrainedTokenizerFast", "Qwen2Tokenizer", "Qwen2TokenizerFast"]
)
def test_the_class_that_is_known_is_the_one_that_transformers_chooses(
    model_type: str, named: str, folder: Path, tmp_path: Path
) -> None:
    if named.startswith("Qwen2"):
        Qwen2Tokenizer.from_pretrained(folder).save_pretrained(tmp_path)
        (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
        changed(tmp_path, tmp_path, config={"model_type": model_type}, tokenizer_config={"tokenizer_class": named})
    else:
        changed(folder, tmp_path, config={"model_type": model_type}, tokenizer_config={"tokenizer_class": named})
    known, chosen = direct_class(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    if known is not None:
        assert type(chosen).__name__ == known
    read = read_tokenizer(tmp_path).tokenizer
    assert type(read) is type(chosen)
    assert read.encode(TEXT) == chosen.encode(TEXT)


@pytest.mark.parametrize(
    ("model_type", "named", "known"),
    [
        ("qwen3", "Qwen2Tokenizer", "Qwen2Tokenizer"),
        ("qwen2", "Qwen2TokenizerFast", "Qwen2Tokenizer"),
        ("llama", "PreTrainedTokenizerFast", "TokenizersBackend"),
        ("llama", "LlamaTokenizer", None),
        ("gemma3", "GemmaTokenizer", None),
    ],
)
def test_the_usual_classes_are_known(
    model_type: str, named: str, known: str | None, folder: Path, tmp_path: Path
) -> None:
    entries = {"config": {"model_type": model_type}, "tokenizer_config": {"tokenizer_class": named}}
    assert direct_class(changed(folder, tmp_path, **entries)) == known


def test_a_tokenizer_with_code_of_its_own_or_without_its_file_is_for_transformers_to_judge(
    folder: Path, tmp_path: Path
) -> None:
    assert direct_class(changed(folder, tmp_path, tokenizer_config={"auto_map": {}})) is None
    (tmp_path / "tokenizer_config.json").write_bytes((folder / "tokenizer_config.json").read_bytes())
    assert direct_class(tmp_path) is not None
    (tmp_path / "tokenizer.json").unlink()
    assert direct_class(tmp_path) is None
    assert direct_class(tmp_path / "absent") is None
