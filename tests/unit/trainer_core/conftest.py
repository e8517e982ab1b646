"""A tiny random model, saved as any model is, and adapters and samples for it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from claas_trainer.batch import StepSample
from claas_trainer.lora import LoraAdapter, LoraShape, new_adapter
from claas_trainer.peft_model import load_base

VOCABULARY = 96


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from threads, which wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Qwen3 whose head_dim is not hidden / heads."""
    folder = tmp_path_factory.mktemp("random-model")
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=True,
        initializer_range=0.2,
        max_position_embeddings=128,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def base(model_folder: Path) -> PreTrainedModel:
    return load_base(model_folder, torch.float32)


@pytest.fixture
def fresh(model_folder: Path) -> LoraAdapter:
    """An adapter that changes nothing yet."""
    return new_adapter(model_folder, LoraShape(rank=4, alpha=8), seed=1)


@pytest.fixture
def adapter(fresh: LoraAdapter) -> LoraAdapter:
    """An adapter that has learned something: its B matrices are not zero."""
    generator = torch.Generator().manual_seed(2)
    tensors = {
        name: torch.randn(tensor.shape, generator=generator) * 0.1 if ".lora_B." in name else tensor
        for name, tensor in fresh.tensors.items()
    }
    return LoraAdapter(fresh.shape, tensors)


@pytest.fixture
def samples() -> list[StepSample]:
    """Seven samples of different lengths, some with recorded log-probabilities."""
    rng = random.Random(3)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(VOCABULARY) for _ in range(rng.randint(low, high)))

    made = []
    for index in range(7):
        student, response = ids(3, 9), ids(1, 8)
        old = tuple(-3 - 3 * rng.random() for _ in response) if index % 2 else None
        made.append(StepSample(student, (*student, *ids(2, 6)), response, old))
    return made
