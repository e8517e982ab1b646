"""A linear layer of the base model with the adapters on its parts: forward, and a hand-written backward.

Several of the model's layers may be fused in one matrix (q, k, v; gate, up). Their adapters are stacked accordingly:
the A matrices one above the other, the B matrices as blocks of one matrix, so that the fused layer needs one product
for each. With the scaling s = alpha / r: y = x W^T + s (x A^T) B^T.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FusedPart:
    """One of the model's linear layers within a fused one: the names of its adapter's tensors, and its rows of the
    output."""

    a_name: str
    b_name: str
    first_row: int
    rows: int


@dataclass(frozen=True)
class LoraGradient:
    """Accumulators of the adapters' gradients, float32: `a`, [k, in], for all parts; `b`, [rows, r], for each."""

    a: Tensor
    b: tuple[Tensor, ...]


@dataclass(frozen=True)
class Lora:
    """The adapters of one fused layer, in the dtype of the products.

    `a`: [k, in] with k = parts * r. `b`: [out, k], zero outside the parts' blocks. `gradient` is None if no gradient
    is needed.
    """

    a: Tensor
    b: Tensor
    parts: tuple[FusedPart, ...]
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
    """(start +) x W^T (+ bias) + LoRA, [T, in] -> [T, out]; and x A^T, [T, k], for the backward pass.

    The small product is computed first; the large one adds to it, which takes no pass of its own. `overwrite`:
    `start` is no longer needed, so its memory may hold the result.
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
    """Gradient of x from that of y; and that of x A^T, before the scaling."""
    if lora is None:
        return gradient @ weight, None
    of_down = gradient @ lora.b
    return _scaled_product(of_down, lora.a, lora.scaling).addmm_(gradient, weight), of_down


def add_gradients(
    lora: Lora | None, x: Tensor, down: Tensor | None, gradient: Tensor, of_down: Tensor | None
) -> None:
    """Adds to the adapters' gradients; `gradient` is that of y. `down` is recomputed from x if it was not saved."""
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
    # With beta 0 the previous content is not read.
    return out.addmm_(left, right, beta=0, alpha=factor)


def _add_product(into: Tensor, left: Tensor, right: Tensor, factor: float) -> None:
    """into += factor * left^T right, [T, m] and [T, n] -> [m, n], summed in float32."""
    if left.dtype == into.dtype:
        into.addmm_(left.t(), right, alpha=factor)
    elif into.is_cuda:
        torch.addmm(into, left.t(), right, alpha=factor, out_dtype=into.dtype, out=into)
    else:
        into.addmm_(left.t().to(into.dtype), right.to(into.dtype), alpha=factor)
