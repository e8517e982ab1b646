"""A linear layer of the base model with the adapters on its parts: forward, and the way back by hand.

The layer may be several of the model's in one matrix (q, k, v; gate, up). Their adapters are stacked accordingly: A's
one above the other, B's as blocks of one matrix, so that each product is one for the whole layer. With the scaling s
= alpha / r: y = x W^T + s (x A^T) B^T.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """One of the model's own linear layers within a fused one: its adapter's tensor names, its rows of the output."""

    a_name: str
    b_name: str
    first_row: int
    rows: int


@dataclass(frozen=True)
class LoraGradient:
    """Where the adapter's gradient is added up, float32: `a`, [k, in], of all parts; `b`, [rows, r], of each."""

    a: Tensor
    b: tuple[Tensor, ...]


@dataclass(frozen=True)
class Lora:
    """The adapters of one fused layer, in the dtype of the products.

    `a`: [k, in] with k = parts * r. `b`: [out, k], zero outside the parts' blocks. `gradient` is None where no
    gradient is wanted.
    """

    a: Tensor
    b: Tensor
    parts: tuple[Part, ...]
    scaling: float
    gradient: LoraGradient | None = None


def lora_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora: Lora | None,
    start: Tensor | None = None,
    *,
    overwrite: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """(start +) x W^T (+ bias) + LoRA, [T, in] -> [T, out]; and x A^T, [T, k], for the way back.

    The small product comes first and the large one is added onto it, which costs no pass of its own. `overwrite`:
    `start` is not needed any more and may become the result.
    """
    first = start if start is not None else bias
    if lora is None:
        if first is None:
            return x @ weight.t(), None
        return (first.addmm_ if overwrite else first.addmm)(x, weight.t()), None
    down = x @ lora.a.t()
    if first is None:
        return _scaled_product(down, lora.b.t(), lora.scaling).addmm_(x, weight.t()), down
    added = (first.addmm_ if overwrite else first.addmm)(down, lora.b.t(), alpha=lora.scaling)
    return added.addmm_(x, weight.t()), down


def lora_backward(gradient: Tensor, weight: Tensor, lora: Lora | None) -> tuple[Tensor, Tensor | None]:
    """The gradient of x from that of y; and that of x A^T, but for the scaling."""
    if lora is None:
        return gradient @ weight, None
    of_down = gradient @ lora.b
    return _scaled_product(of_down, lora.a, lora.scaling).addmm_(gradient, weight), of_down


def add_gradients(
    lora: Lora | None, x: Tensor, down: Tensor | None, gradient: Tensor, of_down: Tensor | None
) -> None:
    """Adds up the adapters' gradients; `gradient` is that of y. `down` is made of x where it was not kept."""
    if lora is None or lora.gradient is None or of_down is None:
        return
    if down is None:
        down = x @ lora.a.t()
    rank = down.shape[1] // len(lora.parts)
    for index, (part, into) in enumerate(zip(lora.parts, lora.gradient.b, strict=True)):
        rows = gradient[:, part.first_row : part.first_row + part.rows]
        _add_product(into, rows, down[:, index * rank : (index + 1) * rank], lora.scaling)
    _add_product(lora.gradient.a, of_down, x, lora.scaling)


def _scaled_product(left: Tensor, right: Tensor, factor: float) -> Tensor:
    out = left.new_empty((left.shape[0], right.shape[1]))
    # beta 0: what is in it is not read.
    return out.addmm_(left, right, beta=0, alpha=factor)


def _add_product(into: Tensor, left: Tensor, right: Tensor, factor: float) -> None:
    """into += factor * left^T right, [T, m] and [T, n] -> [m, n], summed in float32."""
    if left.dtype == into.dtype:
        into.addmm_(left.t(), right, alpha=factor)
    elif into.is_cuda:
        torch.addmm(into, left.t(), right, alpha=factor, out_dtype=into.dtype, out=into)
    else:
        into.addmm_(left.t().to(into.dtype), right.to(into.dtype), alpha=factor)
