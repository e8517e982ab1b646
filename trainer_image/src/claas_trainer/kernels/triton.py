"""The operations of `elementwise` as Triton kernels: each reads its inputs once and writes its outputs once.

A row is a token. All arithmetic is float32, rounded once. Imported only if there is a GPU and Triton can compile.
`elementwise` defines the results, and tests compare against it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_COLUMNS = 1024
_HEADS = 8


@triton.jit
def _rms_norm(x_ptr, w_ptr, y_ptr, epsilon, width: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    inside = columns < width
    x = tl.load(x_ptr + row * width + columns, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(w_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 0) / width + epsilon)
    tl.store(y_ptr + row * width + columns, (x * scale * w).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _rms_norm_backward(  # type: ignore[no-untyped-def]
    x_ptr, w_ptr, gradient_ptr, residual_ptr, out_ptr, y_ptr, epsilon, width: tl.constexpr, block: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    inside = columns < width
    at = row * width + columns
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(w_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 0) / width + epsilon)
    normed = x * scale
    inner = tl.load(gradient_ptr + at, mask=inside, other=0.0).to(tl.float32) * w
    back = scale * (inner - normed * (tl.sum(inner * normed, 0) / width))
    back += tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, back.to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(y_ptr + at, (normed * w).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _rotate(  # type: ignore[no-untyped-def]
    qkv_ptr, cos_ptr, sin_ptr, q_norm_ptr, k_norm_ptr, out_ptr, epsilon, qkv_width: tl.constexpr,
    q_heads: tl.constexpr, heads: tl.constexpr, half: tl.constexpr, block: tl.constexpr, tile: tl.constexpr,
    normed: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * tile + tl.arange(0, tile)[:, None]
    column = tl.arange(0, block)[None, :]
    inside = (head < heads) & (column < half)
    at = head * (2 * half) + column
    first = tl.load(qkv_ptr + row * qkv_width + at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(qkv_ptr + row * qkv_width + at + half, mask=inside, other=0.0).to(tl.float32)
    if normed:
        scale = tl.rsqrt(tl.sum(first * first + second * second, 1)[:, None] / (2 * half) + epsilon)
        is_q = head < q_heads
        w_first = tl.load(q_norm_ptr + column, mask=inside & is_q, other=0.0).to(tl.float32)
        w_first += tl.load(k_norm_ptr + column, mask=inside & (head >= q_heads), other=0.0).to(tl.float32)
        w_second = tl.load(q_norm_ptr + column + half, mask=inside & is_q, other=0.0).to(tl.float32)
        w_second += tl.load(k_norm_ptr + column + half, mask=inside & (head >= q_heads), other=0.0).to(tl.float32)
        first, second = first * scale * w_first, second * scale * w_second
    cos = tl.load(cos_ptr + row * half + column, mask=column < half, other=0.0)
    sin = tl.load(sin_ptr + row * half + column, mask=column < half, other=0.0)
    out = out_ptr + row * (heads * 2 * half) + at
    tl.store(out, (first * cos - second * sin).to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(out + half, (second * cos + first * sin).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _rotate_backward(  # type: ignore[no-untyped-def]
    qkv_ptr, cos_ptr, sin_ptr, q_norm_ptr, k_norm_ptr, dq_ptr, dk_ptr, dv_ptr, out_ptr, epsilon,
    q_heads: tl.constexpr, k_heads: tl.constexpr, half: tl.constexpr, block: tl.constexpr, tile: tl.constexpr,
    normed: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * tile + tl.arange(0, tile)[:, None]
    column = tl.arange(0, block)[None, :]
    width: tl.constexpr = 2 * half
    inside = (head < q_heads + 2 * k_heads) & (column < half)
    is_q, is_v = inside & (head < q_heads), inside & (head >= q_heads + k_heads)
    is_k = inside & (head >= q_heads) & (head < q_heads + k_heads)
    q_at = (row * q_heads + head) * width + column
    k_at = (row * k_heads + head - q_heads) * width + column
    v_at = (row * k_heads + head - q_heads - k_heads) * width + column
    first = tl.load(dq_ptr + q_at, mask=is_q, other=0.0).to(tl.float32)
    first += tl.load(dk_ptr + k_at, mask=is_k, other=0.0).to(tl.float32)
    second = tl.load(dq_ptr + q_at + half, mask=is_q, other=0.0).to(tl.float32)
    second += tl.load(dk_ptr + k_at + half, mask=is_k, other=0.0).to(tl.float32)
    cos = tl.load(cos_ptr + row * half + column, mask=column < half, other=0.0)
    sin = tl.load(sin_ptr + row * half + column, mask=column < half, other=0.0)
    d_first, d_second = first * cos + second * sin, second * cos - first * sin
    at = (row * (q_heads + 2 * k_heads) + head) * width + column
    if normed:
        x_first = tl.load(qkv_ptr + at, mask=is_q | is_k, other=0.0).to(tl.float32)
        x_second = tl.load(qkv_ptr + at + half, mask=is_q | is_k, other=0.0).to(tl.float32)
        w_first = tl.load(q_norm_ptr + column, mask=is_q, other=0.0).to(tl.float32)
        w_first += tl.load(k_norm_ptr + column, mask=is_k, other=0.0).to(tl.float32)
        w_second = tl.load(q_norm_ptr + column + half, mask=is_q, other=0.0).to(tl.float32)
        w_second += tl.load(k_norm_ptr + column + half, mask=is_k, other=0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(x_first * x_first + x_second * x_second, 1)[:, None] / width + epsilon)
        x_first, x_second = x_first * scale, x_second * scale
        d_first, d_second = d_first * w_first, d_second * w_second
        inner = tl.sum(d_first * x_first + d_second * x_second, 1)[:, None] / width
        d_first, d_second = scale * (d_first - x_first * inner), scale * (d_second - x_second * inner)
    d_first += tl.load(dv_ptr + v_at, mask=is_v, other=0.0).to(tl.float32)
    d_second += tl.load(dv_ptr + v_at + half, mask=is_v, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, d_first.to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(out_ptr + at + half, d_second.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu(gate_up_ptr, out_ptr, width: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = column < width
    gate = tl.load(gate_up_ptr + row * 2 * width + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * 2 * width + width + column, mask=inside, other=0.0).to(tl.float32)
    out = gate * tl.sigmoid(gate) * up
    tl.store(out_ptr + row * width + column, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu_backward(  # type: ignore[no-untyped-def]
    gate_up_ptr, gradient_ptr, out_ptr, width: tl.constexpr, block: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = column < width
    gate_at, up_at = row * 2 * width + column, row * 2 * width + width + column
    gate = tl.load(gate_up_ptr + gate_at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + up_at, mask=inside, other=0.0).to(tl.float32)
    gradient = tl.load(gradient_ptr + row * width + column, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    of_gate = gradient * up * (sigmoid + silu * (1 - sigmoid))
    tl.store(out_ptr + row * width + column, (silu * up).to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(gate_up_ptr + gate_at, of_gate.to(gate_up_ptr.dtype.element_ty), mask=inside)
    tl.store(gate_up_ptr + up_at, (gradient * silu).to(gate_up_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _row_logsumexp(logits_ptr, out_ptr, width, block: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    # The start value is very low rather than -inf: -inf minus the -inf of a masked logit would be NaN.
    greatest = tl.full([block], -1e30, tl.float32)
    total = tl.zeros([block], tl.float32)
    for start in range(0, width, block):
        x = tl.load(logits_ptr + row * width + start + columns, mask=start + columns < width, other=-float("inf"))
        higher = tl.maximum(greatest, x)
        total = total * tl.exp(greatest - higher) + tl.exp(x - higher)
        greatest = higher
    top = tl.max(greatest, 0)
    tl.store(out_ptr + row, top + tl.log(tl.sum(total * tl.exp(greatest - top), 0)))


@triton.jit
def _others_gradient(  # type: ignore[no-untyped-def]
    logits_ptr, others_ptr, gradient_ptr, out_ptr, width, block: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = column < width
    x = tl.load(logits_ptr + row * width + column, mask=inside, other=-float("inf"))
    out = tl.exp(x - tl.load(others_ptr + row)) * tl.load(gradient_ptr + row)
    tl.store(out_ptr + row * width + column, out.to(out_ptr.dtype.element_ty), mask=inside)


def _power(width: int) -> int:
    return int(triton.next_power_of_2(width))


def _tiles(width: int, block: int) -> int:
    return int(triton.cdiv(width, block))


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    out = torch.empty_like(x)
    width = x.shape[1]
    _rms_norm[(len(x),)](x, weight, out, epsilon, width, _power(width), num_warps=8)
    return out


def rms_norm_backward(
    x: Tensor, weight: Tensor, epsilon: float, gradient: Tensor, residual: Tensor
) -> tuple[Tensor, Tensor]:
    out, again = torch.empty_like(x), torch.empty_like(x)
    width = x.shape[1]
    _rms_norm_backward[(len(x),)](
        x, weight, gradient, residual, out, again, epsilon, width, _power(width), num_warps=8
    )
    return out, again


def rotate(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    epsilon: float,
    heads: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    q_heads, k_heads = heads
    half, both = cos.shape[1], q_heads + k_heads
    out = qkv.new_empty((len(qkv), both, 2 * half))
    _rotate[(len(qkv), _tiles(both, _HEADS))](
        qkv, cos, sin, q_norm if q_norm is not None else qkv, k_norm if k_norm is not None else qkv, out, epsilon,
        qkv.shape[1], q_heads, both, half, _power(half), _HEADS, q_norm is not None, num_warps=4,
    )  # fmt: skip
    return out[:, :q_heads], out[:, q_heads:]


def rotate_backward(
    qkv: Tensor, cos: Tensor, sin: Tensor, q_norm: Tensor | None, k_norm: Tensor | None, epsilon: float,
    gradients: tuple[Tensor, Tensor, Tensor],
) -> Tensor:  # fmt: skip
    of_q, of_k, of_v = (gradient.contiguous() for gradient in gradients)
    q_heads, k_heads, half = of_q.shape[1], of_k.shape[1], cos.shape[1]
    out = torch.empty_like(qkv)
    _rotate_backward[(len(qkv), _tiles(q_heads + 2 * k_heads, _HEADS))](
        qkv, cos, sin, q_norm if q_norm is not None else qkv, k_norm if k_norm is not None else qkv, of_q, of_k, of_v,
        out, epsilon, q_heads, k_heads, half, _power(half), _HEADS, q_norm is not None, num_warps=4,
    )  # fmt: skip
    return out


def swiglu(gate_up: Tensor) -> Tensor:
    width = gate_up.shape[1] // 2
    out = gate_up.new_empty((len(gate_up), width))
    _swiglu[(len(gate_up), _tiles(width, _COLUMNS))](gate_up, out, width, _COLUMNS, num_warps=4)
    return out


def swiglu_backward(gate_up: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    width = gate_up.shape[1] // 2
    active = torch.empty_like(gradient)
    _swiglu_backward[(len(gate_up), _tiles(width, _COLUMNS))](gate_up, gradient, active, width, _COLUMNS, num_warps=4)
    return gate_up, active


def row_logsumexp(logits: Tensor) -> Tensor:
    out = logits.new_empty(len(logits))
    _row_logsumexp[(len(logits),)](logits, out, logits.shape[1], 4096, num_warps=8)
    return out


def others_gradient(logits: Tensor, others: Tensor, gradient: Tensor, dtype: torch.dtype) -> Tensor:
    out = torch.empty_like(logits, dtype=dtype)
    grid = (len(logits), _tiles(logits.shape[1], 4096))
    _others_gradient[grid](logits, others, gradient, out, logits.shape[1], 4096, num_warps=8)
    return out
