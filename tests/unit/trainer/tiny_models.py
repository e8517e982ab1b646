"""Tiny random models besides the Qwen3 of `tests.builders.models`, with its tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    GemmaConfig,
    GemmaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from tests.builders.models import build_tiny_qwen3

_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "dtype": "float32",
}


def build_gemma(folder: Path) -> Path:
    """An architecture that the trainer's own forward does not know."""
    return _build(folder, GemmaForCausalLM, GemmaConfig)


def build_mistral(folder: Path, *, sliding_window: int) -> Path:
    """One that it knows, but for samples longer than the window."""
    return _build(folder, MistralForCausalLM, MistralConfig, sliding_window=sliding_window)


def _build(folder: Path, model: type[PreTrainedModel], config: type, **settings: int) -> Path:
    build_tiny_qwen3(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model(config(**_SIZES, **ids, **settings)).save_pretrained(folder)
    return folder
