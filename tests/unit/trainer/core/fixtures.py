"""A tiny random model, saved as any model is, and adapters and samples for it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from claas_trainer.forward.peft_model import load_base
from claas_trainer.forward.weights.host import HostWeights
from claas_trainer.model.lora import AdapterWeights, LoraShape, new_adapter
from claas_trainer.sdpo.batch import TokenSample
from tests.unit.trainer.core.models import VOCABULARY, Way, build, decoder_way, host_weights, learned, peft_way


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
    return build("qwen3", tmp_path_factory.mktemp("random-model"))


@pytest.fixture
def base(model_folder: Path) -> PreTrainedModel:
    return load_base(model_folder, torch.float32)


@pytest.fixture
def weights(model_folder: Path) -> HostWeights:
    return host_weights(model_folder)


@pytest.fixture(scope="session")
def ways(model_folder: Path) -> dict[str, Way]:
    """Read once: the one leaves its base model as it was, the other writes nothing."""
    return {
        "peft": peft_way(load_base(model_folder, torch.float32)),
        "decoder": decoder_way(host_weights(model_folder)),
    }


@pytest.fixture(params=["peft", "decoder"])
def way(request: pytest.FixtureRequest, ways: dict[str, Way]) -> Way:
    """Both ways to compute with the base model, one after the other."""
    return ways[request.param]


@pytest.fixture
def fresh(model_folder: Path) -> AdapterWeights:
    """An adapter that changes nothing yet."""
    return new_adapter(model_folder, LoraShape(rank=4, alpha=8), seed=1)


@pytest.fixture
def adapter(model_folder: Path) -> AdapterWeights:
    """An adapter that has learned something."""
    return learned(model_folder)


@pytest.fixture
def samples() -> list[TokenSample]:
    """Seven samples of different lengths, some with recorded log-probabilities."""
    rng = random.Random(3)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(VOCABULARY) for _ in range(rng.randint(low, high)))

    made = []
    for index in range(7):
        student, response = ids(3, 9), ids(1, 8)
        old = tuple(-3 - 3 * rng.random() for _ in response) if index % 2 else None
        made.append(TokenSample(student, (*student, *ids(2, 6)), response, old))
    return made
