"""Base weights that stay in host memory, and are on the device from `acquire` to `release` alone."""

from __future__ import annotations

import math
import mmap
import os
import weakref
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from claas_trainer.step_errors import WeightsError
from claas_trainer.weights.files import Checkpoint, fingerprint, read_into, sample
from claas_trainer.weights.shape import ModelShape
from claas_trainer.weights.source import LayerWeights, WeightSource

_ALIGNMENT = 512
"""Bytes. What torch's allocator rounds up to on CUDA, so that sums of it are what is taken."""
_READERS = 8
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_LAYER_TENSORS = {
    "input_norm": ("input_layernorm.weight",),
    "qkv": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "qkv_bias": ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"),
    "o": ("self_attn.o_proj.weight",),
    "post_norm": ("post_attention_layernorm.weight",),
    "gate_up": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "down": ("mlp.down_proj.weight",),
    "q_norm": ("self_attn.q_norm.weight",),
    "k_norm": ("self_attn.k_norm.weight",),
}

type_Parts = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
