"""Causal attention over packed sequences, and the way back through it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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


class Attention:
    """One attention, forward at once: `output` is [T, heads * d]. With `keep` it can be gone back through, once.

    `q`: [T, heads, d], `k` and `v`: [T, kv_heads, d]. Each sequence sees itself alone. Sequences of one length are
    computed together, so packing needs no padding.
    """

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], *, keep: bool) -> None:
        self._inputs = [x.detach().requires_grad_(keep) for x in (q, k, v)]
        with torch.set_grad_enabled(keep), sdpa_kernel(_BACKENDS, set_priority=True):
            pieces = [_attend(*(x[start:end] for x in self._inputs), count) for start, end, count in _runs(lengths)]
            output = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        self.output = output.detach()
        self._graph = output if keep else None

    def backward(self, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of q, k and v from that of the output; the graph is let go of."""
        assert self._graph is not None, "the forward was told to keep nothing"
        graph, self._graph = self._graph, None
        with sdpa_kernel(_BACKENDS, set_priority=True):
            found = torch.autograd.grad(graph, self._inputs, gradient)
        return found[0], found[1], found[2]


def _attend(q: Tensor, k: Tensor, v: Tensor, count: int) -> Tensor:
    """Sequences of one length, one after the other: [count * L, heads, d] -> [count * L, heads * d]."""
    shared = q.shape[1] != k.shape[1]
    if shared and not q.is_cuda:
        # On a CPU the fast kernel wants a key for each query head.
        repeats = q.shape[1] // k.shape[1]
        k, v, shared = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1), False
    q, k, v = (x.unflatten(0, (count, -1)).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=shared)
    return out.transpose(1, 2).flatten(2).flatten(0, 1)


def _runs(lengths: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Stretches of sequences of one length: first row, last row + 1, how many sequences."""
    start = index = 0
    while index < len(lengths):
        count = 1
        while index + count < len(lengths) and lengths[index + count] == lengths[index]:
            count += 1
        end = start + count * lengths[index]
        yield start, end, count
        start, index = end, index + count
