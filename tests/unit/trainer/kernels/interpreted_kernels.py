"""Runs the Triton kernels under Triton's interpreter, which computes on the CPU, beside their definitions.

    TRITON_INTERPRET=1 python -m tests.unit.trainer.kernels.interpreted_kernels

Prints for each how far it is off, relative to the norm of what is expected. A process of its own, because Triton
reads the variable when it is imported.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import torch
from torch import Tensor

from claas_trainer.kernels import elementwise
from claas_trainer.kernels import triton as kernels

Results = Tensor | tuple[Tensor, ...]


def off(found: Results, expected: Results) -> float:
    """The greatest relative distance between corresponding tensors; 1 where something is NaN."""
    pairs = zip(_all(found), _all(expected), strict=True)
    distances = [((x - y).norm() / y.norm()).item() for x, y in pairs]
    return max(1.0 if distance != distance else distance for distance in distances)


def _all(results: Results) -> tuple[Tensor, ...]:
    return (results,) if isinstance(results, Tensor) else results


def compared() -> Iterator[tuple[str, float]]:
    """Every kernel on sizes that fill no block, by name."""
    torch.manual_seed(0)
    x, gradient, residual, weight = torch.randn(5, 48), torch.randn(5, 48), torch.randn(5, 48), torch.randn(48)
    yield "rms_norm", off(kernels.rms_norm(x, weight, 1e-6), elementwise.rms_norm(x, weight, 1e-6))
    arguments = (x, weight, 1e-6, gradient, residual)
    yield "rms_norm_backward", off(kernels.rms_norm_backward(*arguments), elementwise.rms_norm_backward(*arguments))
    for q_heads, k_heads, width in ((4, 2, 16), (6, 3, 24), (9, 1, 8)):
        yield from rotations(q_heads, k_heads, width)
    gate_up, of_active = torch.randn(5, 2 * 1500), torch.randn(5, 1500)
    yield "swiglu", off(kernels.swiglu(gate_up), elementwise.swiglu(gate_up))
    expected = elementwise.swiglu_backward(gate_up, of_active)
    yield "swiglu_backward", off(kernels.swiglu_backward(gate_up.clone(), of_active), expected)
    logits, of_others = torch.randn(5, 9000), torch.randn(5)
    logits[:, ::7] = -torch.inf
    others = elementwise.row_logsumexp(logits)
    yield "row_logsumexp", off(kernels.row_logsumexp(logits), others)
    left_out = (logits, others, of_others, torch.float32)
    yield "others_gradient", off(kernels.others_gradient(*left_out), elementwise.others_gradient(*left_out))


def rotations(q_heads: int, k_heads: int, width: int) -> Iterator[tuple[str, float]]:
    """Both ways, for models with and without a norm on heads."""
    qkv = torch.randn(5, (q_heads + 2 * k_heads) * width)
    cos, sin = torch.randn(5, width // 2), torch.randn(5, width // 2)
    back = (torch.randn(5, q_heads, width), torch.randn(5, k_heads, width), torch.randn(5, k_heads, width))
    heads = (q_heads, k_heads)
    for q_norm, k_norm in ((torch.randn(width), torch.randn(width)), (None, None)):
        name = f"{q_heads} and {k_heads} heads of {width}{'' if q_norm is None else ', normed'}"
        found = kernels.rotate(qkv, cos, sin, q_norm, k_norm, 1e-6, heads)
        yield f"rotate, {name}", off(found, elementwise.rotate(qkv, cos, sin, q_norm, k_norm, 1e-6, heads))
        of_qkv = kernels.rotate_backward(qkv, cos, sin, q_norm, k_norm, 1e-6, back)
        expected = elementwise.rotate_backward(qkv, cos, sin, q_norm, k_norm, 1e-6, back)
        yield f"rotate_backward, {name}", off(of_qkv, expected)


if __name__ == "__main__":
    print(json.dumps(dict(compared())))
