"""Layout of a model's weights in memory: a block for each layer, and blocks for the parts before and after them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from claas_trainer.model.shape import ModelShape

_ALIGNMENT = 512
"""Bytes. PyTorch's CUDA allocator rounds up to this, so that the sum of block sizes is the memory that `acquire`
takes."""
EMBEDDING, HEAD, FINAL_NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
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

Parts = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""The tensors of a block, which is one contiguous piece of memory and moved by one copy: name -> (shape, dtype), in
memory order."""
Key = int | str
"""Key of a block: a layer's index, or a name."""


def layer_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Shapes of the fields of `LayerWeights` for a model."""
    shapes: dict[str, tuple[int, ...]] = {
        "input_norm": (shape.hidden,),
        "qkv": (shape.qkv_width, shape.hidden),
        "o": (shape.hidden, shape.query_width),
        "post_norm": (shape.hidden,),
        "gate_up": (2 * shape.intermediate, shape.hidden),
        "down": (shape.hidden, shape.intermediate),
    }
    if shape.qkv_bias:
        shapes["qkv_bias"] = (shape.qkv_width,)
    if shape.qk_norm:
        shapes["q_norm"] = shapes["k_norm"] = (shape.head_dim,)
    return shapes


def block_parts(shape: ModelShape, dtype: torch.dtype) -> dict[Key, Parts]:
    """The blocks, in the order in which a forward pass needs them."""
    matrix = ((shape.vocabulary, shape.hidden), dtype)
    head: dict[Key, Parts] = {"head": {"weight": matrix}}
    layer = {name: (width, dtype) for name, width in layer_shapes(shape).items()}
    layers: dict[Key, Parts] = dict.fromkeys(range(shape.layers), layer)
    norm: dict[Key, Parts] = {"final_norm": {"weight": ((shape.hidden,), dtype)}}
    if shape.tied:
        return head | layers | norm
    return {"embedding": {"table": matrix}} | layers | norm | head


def stored_tensors(
    shape: ModelShape, blocks: Mapping[Key, Parts], memory: Mapping[Key, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Names of stored tensors, each with its destination."""
    heights = _heights(shape)
    single = {"embedding": EMBEDDING, "final_norm": FINAL_NORM, "head": EMBEDDING if shape.tied else HEAD}
    for key, parts in blocks.items():
        for field, view in carve(memory[key], parts).items():
            if isinstance(key, str):
                yield single[key], view
                continue
            pieces = torch.split(view, heights.get(field, [len(view)]))
            for name, piece in zip(_LAYER_TENSORS[field], pieces, strict=True):
                yield f"model.layers.{key}.{name}", piece


def layer_parts(shape: ModelShape) -> dict[str, list[tuple[str, tuple[int, ...]]]]:
    """For each field of `LayerWeights`: the stored tensors that are stacked into it, by their names within a layer,
    and their shapes."""
    heights = _heights(shape)
    return {
        field: [
            (name, (height, *size[1:]))
            for name, height in zip(_LAYER_TENSORS[field], heights.get(field, [size[0]]), strict=True)
        ]
        for field, size in layer_shapes(shape).items()
    }


def _heights(shape: ModelShape) -> dict[str, list[int]]:
    """Number of rows of each part of a fused tensor."""
    widths = [shape.query_width, shape.key_width, shape.key_width]
    return {"qkv": widths, "qkv_bias": widths, "gate_up": [shape.intermediate] * 2}


def size_of(parts: Parts) -> int:
    """Size of a block in bytes."""
    return sum(_aligned(shape, dtype) for shape, dtype in parts.values())


def _aligned(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return -(-math.prod(shape) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT


def carve(block: Tensor, parts: Parts) -> dict[str, Tensor]:
    """Views of a block's bytes as its tensors."""
    views, start = {}, 0
    for name, (shape, dtype) in parts.items():
        views[name] = block[start : start + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
        start += _aligned(shape, dtype)
    return views


def slices(memory: Tensor, blocks: Mapping[Key, Parts]) -> dict[Key, Tensor]:
    """Divides the memory of all blocks into blocks."""
    return dict(zip(blocks, torch.split(memory, [size_of(parts) for parts in blocks.values()]), strict=True))
