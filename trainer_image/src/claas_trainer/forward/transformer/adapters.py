"""Combines the adapter's tensors, by published name, into the matrices of the fused layers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from claas_trainer.forward.transformer.layer import LayerLoras
from claas_trainer.forward.transformer.lora import FusedPart, Lora, LoraGradient
from claas_trainer.model.shape import ModelShape
from claas_trainer.sdpo.errors import AdapterError, UnsupportedModelError
from claas_trainer.sdpo.parameters import Layout

_NAME = re.compile(
    r"base_model\.model\.model\.layers\.(?P<layer>\d+)\.(?P<block>self_attn|mlp)\.(?P<module>\w+)"
    r"\.lora_(?P<side>[AB])\.weight"
)
_FUSED = {
    "qkv": ("self_attn", ("q_proj", "k_proj", "v_proj")),
    "o": ("self_attn", ("o_proj",)),
    "gate_up": ("mlp", ("gate_proj", "up_proj")),
    "down": ("mlp", ("down_proj",)),
}


@dataclass(frozen=True)
class _Fused:
    """A fused layer that has adapters: its parts, and the width of its output."""

    parts: tuple[FusedPart, ...]
    out_width: int


class AdapterMap:
    """Maps the adapter's tensors to the fused layers. `layout` places tensors that are multiplied together side by
    side.

    Raises:
        AdapterError: a tensor does not fit the base model.
        UnsupportedModelError: the adapter is on modules other than the decoder's linear layers.
    """

    def __init__(self, shape: ModelShape, tensors: Mapping[str, torch.Size], rank: int, alpha: float) -> None:
        self._scaling = alpha / rank
        self._layers: list[dict[str, _Fused]] = []
        names: list[str] = []
        for index in range(shape.layers):
            fused = {name: _fused(shape, index, name, tensors) for name in _FUSED}
            self._layers.append({name: found for name, found in fused.items() if found.parts})
            for found in fused.values():
                names += [part.a_name for part in found.parts] + [part.b_name for part in found.parts]
        other = sorted(tensors.keys() - set(names))
        if other:
            if not _NAME.fullmatch(other[0]):
                raise UnsupportedModelError(f"the adapter is on {other[0]}")
            raise AdapterError(f"the adapter has an unknown tensor {other[0]}: it belongs to another base model")
        for name in names:
            _check(shape, name, tensors[name], rank)
        self.layout = Layout({name: tensors[name] for name in names})

    def loras(self, masters: Tensor, dtype: torch.dtype, gradient: Tensor | None = None) -> list[LayerLoras]:
        """Each layer's adapters from a flat vector, in the dtype of the products, with a flat gradient to add to. The
        A matrices of a layer are adjacent in the vector and so form one matrix without a copy.
        """
        values = _Vector(self.layout, masters.to(dtype))
        gradients = None if gradient is None else _Vector(self.layout, gradient)
        return [
            LayerLoras(**{name: self._lora(fused, values, gradients) for name, fused in layer.items()})
            for layer in self._layers
        ]

    def _lora(self, fused: _Fused, values: _Vector, gradients: _Vector | None) -> Lora:
        into = None if gradients is None else LoraGradient(gradients.stacked_a(fused), tuple(gradients.all_b(fused)))
        return Lora(values.stacked_a(fused), values.block_b(fused), fused.parts, self._scaling, into)


class _Vector:
    """Views of a flat vector as the matrices of fused layers."""

    def __init__(self, layout: Layout, flat: Tensor) -> None:
        self._flat = flat
        self._starts = layout.starts
        self._named = layout.views(flat)

    def stacked_a(self, fused: _Fused) -> Tensor:
        """The A matrices of the parts, stacked: [k, in]."""
        name = fused.parts[0].a_name
        rank, width = self._named[name].shape
        rows = len(fused.parts) * rank
        return self._flat.narrow(0, self._starts[name], rows * width).view(rows, width)

    def all_b(self, fused: _Fused) -> list[Tensor]:
        """The B matrices of the parts, [rows, r] each."""
        return [self._named[part.b_name] for part in fused.parts]

    def block_b(self, fused: _Fused) -> Tensor:
        """The B matrices of the parts as blocks of one matrix, [out, k]."""
        found = self.all_b(fused)
        if found[0].shape[0] == fused.out_width:
            return found[0]
        rank = found[0].shape[1]
        stacked = found[0].new_zeros((fused.out_width, rank * len(found)))
        for index, (b, part) in enumerate(zip(found, fused.parts, strict=True)):
            stacked[part.first_row : part.first_row + part.rows, index * rank : (index + 1) * rank] = b
        return stacked


def adapter_shapes(shape: ModelShape, rank: int) -> dict[str, torch.Size]:
    """Shapes of the tensors of an adapter on every linear layer of the decoder, by published name."""
    found: dict[str, torch.Size] = {}
    for layer in range(shape.layers):
        for block, modules in _FUSED.values():
            for module in modules:
                prefix = f"base_model.model.model.layers.{layer}.{block}.{module}"
                found[f"{prefix}.lora_A.weight"] = torch.Size((rank, _in_width(shape, module)))
                found[f"{prefix}.lora_B.weight"] = torch.Size((_out_width(shape, module), rank))
    return found


def _fused(shape: ModelShape, layer: int, name: str, tensors: Mapping[str, torch.Size]) -> _Fused:
    block, modules = _FUSED[name]
    parts = []
    row = 0
    for module in modules:
        rows = _out_width(shape, module)
        prefix = f"base_model.model.model.layers.{layer}.{block}.{module}"
        a_name, b_name = f"{prefix}.lora_A.weight", f"{prefix}.lora_B.weight"
        if (a_name in tensors) != (b_name in tensors):
            raise AdapterError(f"the adapter lacks one of {a_name} and lora_B: restore its file")
        if a_name in tensors:
            parts.append(FusedPart(a_name, b_name, row, rows))
        row += rows
    return _Fused(tuple(parts), row)


def _check(shape: ModelShape, name: str, found: torch.Size, rank: int) -> None:
    match = _NAME.fullmatch(name)
    assert match is not None, "names are made of the pattern's parts"
    module = match["module"]
    wanted = (rank, _in_width(shape, module)) if match["side"] == "A" else (_out_width(shape, module), rank)
    if tuple(found) != wanted:
        raise AdapterError(
            f"the adapter's {name} is {tuple(found)}, the base model needs {wanted}: it belongs to another base model"
            " or has another rank"
        )


def _out_width(shape: ModelShape, module: str) -> int:
    widths = {
        "q_proj": shape.query_width,
        "k_proj": shape.key_width,
        "v_proj": shape.key_width,
        "gate_proj": shape.intermediate,
        "up_proj": shape.intermediate,
    }
    return widths.get(module, shape.hidden)


def _in_width(shape: ModelShape, module: str) -> int:
    return {"o_proj": shape.query_width, "down_proj": shape.intermediate}.get(module, shape.hidden)
