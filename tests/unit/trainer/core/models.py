"""Tiny random models of each family, adapters for them, and both ways to compute with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from claas_trainer.forward.peft_model import attached
from claas_trainer.forward.transformer.model import DecoderModel
from claas_trainer.forward.weights.host import HostWeights
from claas_trainer.model.config_shape import read_shape
from claas_trainer.model.lora import AdapterWeights, LoraShape, new_adapter
from claas_trainer.model.shape import ModelShape
from claas_trainer.sdpo.batch import TokenSample
from claas_trainer.sdpo.optimizer import OptimizerState, Part
from claas_trainer.sdpo.policy import PolicyModel
from claas_trainer.sdpo.settings import Schedule, SdpoConfig
from claas_trainer.sdpo.step import SdpoResult, sdpo_step
from claas_trainer.sdpo.teachers.base import Teacher

CPU = torch.device("cpu")
VOCABULARY = 96
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "max_position_embeddings": 128,
}


def _stretched(kind: str, **settings: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 500.0, **settings}}


@dataclass(frozen=True)
class Kind:
    """A configuration's and a model's class, and what its configuration has besides the common."""

    config: Any
    model: Any
    settings: Mapping[str, Any]


KINDS = {
    # Its head_dim is not hidden / heads.
    "qwen3": Kind(Qwen3Config, Qwen3ForCausalLM, {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen2": Kind(Qwen2Config, Qwen2ForCausalLM, {}),
    "llama": Kind(
        LlamaConfig,
        LlamaForCausalLM,
        _stretched(
            "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
        ),
    ),
    "llama-yarn": Kind(
        LlamaConfig, LlamaForCausalLM, _stretched("yarn", factor=4.0, original_max_position_embeddings=32)
    ),
    "llama-linear": Kind(LlamaConfig, LlamaForCausalLM, _stretched("linear", factor=4.0)),
    "mistral": Kind(MistralConfig, MistralForCausalLM, {"sliding_window": None}),
}


def build(kind: str, folder: Path, *, seed: int = 0, **settings: Any) -> Path:
    """Write a model with random weights, norms and biases; returns the folder."""
    made = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = made.model(made.config(**{**_COMMON, **made.settings, **settings}))
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                torch.nn.init.normal_(parameter, float("norm" in name), 0.2)
    model.save_pretrained(folder)
    return folder


def shape_of(folder: Path) -> ModelShape:
    return read_shape(folder)


def host_weights(folder: Path, dtype: torch.dtype | None = None) -> HostWeights:
    return HostWeights.read(folder, shape_of(folder), CPU, dtype)


def learned(folder: Path, targets: tuple[str, ...] = (), *, spread: float = 0.1, rank: int = 4) -> AdapterWeights:
    """An adapter that has learned something: its B matrices are not zero."""
    fresh = new_adapter(folder, LoraShape(rank, 8, targets), seed=1)
    generator = torch.Generator().manual_seed(2)
    tensors = {
        name: torch.randn(tensor.shape, generator=generator) * spread if ".lora_B." in name else tensor
        for name, tensor in fresh.tensors.items()
    }
    return AdapterWeights(fresh.shape, tensors)


def decoder(weights: HostWeights, adapter: AdapterWeights, checkpointed_layers: int = 0) -> DecoderModel:
    shapes = {name: tensor.shape for name, tensor in adapter.tensors.items()}
    model = DecoderModel(weights, shapes, adapter.shape.rank, adapter.shape.alpha)
    model.checkpointed_layers = checkpointed_layers
    return model


class Way(Protocol):
    """One of the two ways to compute with the base model."""

    def __call__(self, adapter: AdapterWeights) -> AbstractContextManager[PolicyModel]: ...


def peft_way(base: PreTrainedModel) -> Way:
    return lambda adapter: attached(base, adapter)


def decoder_way(weights: HostWeights, checkpointed_layers: int = 0) -> Way:
    @contextmanager
    def opened(adapter: AdapterWeights) -> Iterator[PolicyModel]:
        yield decoder(weights, adapter, checkpointed_layers)

    return opened


def step(
    way: Way,
    adapter: AdapterWeights,
    samples: Sequence[TokenSample],
    config: SdpoConfig,
    state: OptimizerState | None = None,
    teacher: Teacher | None = None,
    schedule: Schedule | None = None,
) -> SdpoResult:
    with way(adapter) as model:
        state = state or OptimizerState.fresh(adapter.tensors, model.layout)
        return sdpo_step(model, samples, config, state, teacher, schedule)


def flat(tensors: Mapping[str, Tensor]) -> Tensor:
    """All of them in one vector, in the order of their names, whatever a model's layout is."""
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def masters(result: SdpoResult) -> Tensor:
    return flat(result.state.masters)


def gradient(result: SdpoResult, config: SdpoConfig) -> Tensor:
    """After a first step the first moment is (1 - beta1) times the gradient."""
    return flat(result.state.named(Part.EXP_AVG)) / (1 - config.beta1)


def off(found: Tensor, wanted: Tensor) -> float:
    """The norm of the difference, relative."""
    return float((found - wanted).norm() / wanted.norm())
