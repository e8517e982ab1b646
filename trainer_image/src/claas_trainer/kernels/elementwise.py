"""The operations between the matrix products: norms, rotary embedding, SwiGLU, softmax, each with its backward pass.

Plain PyTorch on rows, one row per token, computed in float32 or wider and rounded once. On a GPU each is one Triton
kernel (`kernels.triton`), which only changes the speed; where Triton can't compile, this code is used instead.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x / rms(x) * weight, [T, width] (arXiv 1910.07467)."""
    if fast := _kernels(x):
        return fast.rms_norm(x, weight, epsilon)  # type: ignore[no-any-return]
    normed, _ = _normed(_wide(x), epsilon)
    return (normed * _wide(weight)).to(x.dtype)


def rms_norm_backward(
    x: Tensor, weight: Tensor, epsilon: float, gradient: Tensor, residual: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradient of x plus that of the residual branch, and `rms_norm(x)` recomputed."""
    if fast := _kernels(x):
        return fast.rms_norm_backward(x, weight, epsilon, gradient, residual)  # type: ignore[no-any-return]
    normed, scale = _normed(_wide(x), epsilon)
    back = _through_norm(_wide(gradient) * _wide(weight), normed, scale)
    return (back + _wide(residual)).to(x.dtype), (normed * _wide(weight)).to(x.dtype)


def rotate(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    epsilon: float,
    heads: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """q, [T, q_heads, d], and k, [T, k_heads, d], from [T, qkv]: heads are normalised if the model does so, then
    rotated by the angles of their positions, [T, d / 2] (arXiv 2104.09864)."""
    if fast := _kernels(qkv):
        return fast.rotate(qkv, cos, sin, q_norm, k_norm, epsilon, heads)  # type: ignore[no-any-return]
    rotated = []
    for found, norm in zip(_heads(qkv, heads, 2 * cos.shape[1]), (q_norm, k_norm), strict=False):
        wide = _wide(found)
        if norm is not None:
            wide = _normed(wide, epsilon)[0] * _wide(norm)
        rotated.append(_rotated(wide, cos, sin).to(qkv.dtype))
    return rotated[0], rotated[1]


def rotate_backward(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    epsilon: float,
    gradients: tuple[Tensor, Tensor, Tensor],
) -> Tensor:
    """Gradient of qkv, [T, qkv], from those of q, k and v. A rotation's backward pass is the inverse rotation."""
    if fast := _kernels(qkv):
        return fast.rotate_backward(qkv, cos, sin, q_norm, k_norm, epsilon, gradients)  # type: ignore[no-any-return]
    of_q, of_k, of_v = gradients
    pieces = []
    before = _heads(qkv, (of_q.shape[1], of_k.shape[1]), of_q.shape[2])
    for found, gradient, norm in zip(before, (of_q, of_k), (q_norm, k_norm), strict=False):
        inner = _rotated(_wide(gradient), cos, -sin)
        if norm is not None:
            inner = _through_norm(inner * _wide(norm), *_normed(_wide(found), epsilon))
        pieces.append(inner.to(qkv.dtype).flatten(1))
    return torch.cat([*pieces, of_v.flatten(1)], dim=-1)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, [T, 2 I] -> [T, I] (arXiv 2002.05202)."""
    if fast := _kernels(gate_up):
        return fast.swiglu(gate_up)  # type: ignore[no-any-return]
    gate, up = _wide(gate_up).chunk(2, dim=-1)
    return (F.silu(gate) * up).to(gate_up.dtype)


def swiglu_backward(gate_up: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of gate and up, [T, 2 I], and `swiglu` recomputed. May overwrite `gate_up`."""
    if fast := _kernels(gate_up):
        return fast.swiglu_backward(gate_up, gradient)  # type: ignore[no-any-return]
    gate, up = _wide(gate_up).chunk(2, dim=-1)
    wide, sigmoid = _wide(gradient), torch.sigmoid(gate)
    silu = F.silu(gate)
    of_gate = wide * up * (sigmoid + silu * (1 - sigmoid))
    return torch.cat([of_gate, wide * silu], dim=-1).to(gate_up.dtype), (silu * up).to(gate_up.dtype)


def row_logsumexp(logits: Tensor) -> Tensor:
    """[N, V] -> [N]."""
    if fast := _kernels(logits):
        return fast.row_logsumexp(logits)  # type: ignore[no-any-return]
    return logits.logsumexp(-1)


def others_gradient(logits: Tensor, others: Tensor, gradient: Tensor, dtype: torch.dtype) -> Tensor:
    """Gradient of the logits, [N, V], from that of their logsumexp `others`, [N]; 0 where a logit is -inf."""
    if fast := _kernels(logits):
        return fast.others_gradient(logits, others, gradient, dtype)  # type: ignore[no-any-return]
    return (torch.exp(logits - others.unsqueeze(-1)) * gradient.unsqueeze(-1)).to(dtype)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _normed(wide: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """x / rms(x), and 1 / rms(x)."""
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return wide * scale, scale


def _through_norm(inner: Tensor, normed: Tensor, scale: Tensor) -> Tensor:
    """Gradient of x from that of x / rms(x)."""
    return scale * (inner - normed * (inner * normed).mean(-1, keepdim=True))


def _heads(qkv: Tensor, heads: tuple[int, int], width: int) -> tuple[Tensor, Tensor]:
    q_end, k_end = heads[0] * width, (heads[0] + heads[1]) * width
    return torch.unflatten(qkv[:, :q_end], -1, (-1, width)), torch.unflatten(qkv[:, q_end:k_end], -1, (-1, width))


def _rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    first, second = heads.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _kernels(x: Tensor) -> ModuleType | None:
    return _compiled() if x.is_cuda and x.dtype != torch.float64 else None


@cache
def _compiled() -> ModuleType | None:
    """The Triton kernels; None if they can't be compiled (Triton needs a C compiler)."""
    try:
        from claas_trainer.kernels import triton as kernels

        probe = torch.ones(2, 8, device="cuda")
        kernels.rms_norm(probe, probe[0], 1e-6)
    except Exception:  # noqa: BLE001 - without Triton the step is only slower
        return None
    return kernels
