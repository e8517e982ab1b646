"""Causal attention over packed sequences, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

_BACKENDS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
# cuDNN makes a plan for each new shape, so widths are rounded up to multiples of this.
_WIDTH = 128


class Packing:
    """Layout of sequences packed into [T], and how attention separates them.

    Sequences of one length are computed together without padding. Sequences of several lengths are computed on a GPU
    all at once, padded on the right, where the causal mask hides the padding; on the CPU length by length.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.lengths = tuple(lengths)
        self.places: Tensor | None = None
        self.width = -(-max(lengths) // _WIDTH) * _WIDTH
        if device.type == "cuda" and len(set(lengths)) > 1:
            places = [torch.arange(length) + row * self.width for row, length in enumerate(lengths)]
            self.places = torch.cat(places).to(device)

    def runs(self) -> Iterator[tuple[int, int, int]]:
        """Runs of sequences of one length: first row, last row + 1, number of sequences."""
        start = index = 0
        while index < len(self.lengths):
            count = 1
            while index + count < len(self.lengths) and self.lengths[index + count] == self.lengths[index]:
                count += 1
            end = start + count * self.lengths[index]
            yield start, end, count
            start, index = end, index + count


class Attention:
    """One attention operation. The constructor computes the forward pass: `output` is [T, heads * d]. With `keep`,
    one backward pass is possible.

    `q`: [T, heads, d], `k` and `v`: [T, kv_heads, d]. A sequence attends to itself only.
    """

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, packing: Packing, *, keep: bool) -> None:
        self._inputs = [x.detach().requires_grad_(keep) for x in (q, k, v)]
        with torch.set_grad_enabled(keep), sdpa_kernel(_BACKENDS, set_priority=True):
            output = (
                _padded(self._inputs, packing) if packing.places is not None else _by_length(self._inputs, packing)
            )
        self.output = output.detach()
        self._graph = output if keep else None

    def backward(self, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k and v from that of the output; frees the graph."""
        assert self._graph is not None, "the forward pass kept nothing"
        graph, self._graph = self._graph, None
        with torch.enable_grad(), sdpa_kernel(_BACKENDS, set_priority=True):
            seed = _Seed.apply(graph, gradient)  # type: ignore[no-untyped-call]
            found = torch.autograd.grad(seed, self._inputs)
        return found[0], found[1], found[2]


class _Seed(torch.autograd.Function):
    """A scalar whose backward pass returns the given gradient. Passing the gradient to `torch.autograd.grad` directly
    makes PyTorch import sympy to compare two shapes, which takes seconds the first time."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, gradient: Tensor) -> Tensor:
        ctx.gradient = gradient
        return output.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, None]:
        return ctx.gradient, None


def _by_length(inputs: Sequence[Tensor], packing: Packing) -> Tensor:
    q, k, v = inputs
    pieces = [_attend(q[start:end], k[start:end], v[start:end], count) for start, end, count in packing.runs()]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _padded(inputs: Sequence[Tensor], packing: Packing) -> Tensor:
    places, count = packing.places, len(packing.lengths)
    assert places is not None, "only unequal lengths are padded"
    wide = [x.new_zeros((count * packing.width, *x.shape[1:])).index_copy(0, places, x) for x in inputs]
    return _attend(wide[0], wide[1], wide[2], count).index_select(0, places)


def _attend(q: Tensor, k: Tensor, v: Tensor, count: int) -> Tensor:
    """Attention for packed sequences of one length: [count * L, heads, d] -> [count * L, heads * d]."""
    shared = q.shape[1] != k.shape[1]
    if shared and not q.is_cuda:
        # On a CPU the fast kernel needs one key head for each query head.
        repeats = q.shape[1] // k.shape[1]
        k, v, shared = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1), False
    q, k, v = (torch.unflatten(x, 0, (count, -1)).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=shared)
    return out.transpose(1, 2).flatten(2).flatten(0, 1)
