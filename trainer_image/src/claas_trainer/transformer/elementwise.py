"""What happens between the matrix products: norms, rotation, SwiGLU, and the way back through each.

Plain PyTorch on [T, ...] rows, computed in float32 at least and rounded once. On a GPU each function is compiled into one
kernel (`fused`), which changes nothing but speed; lengths are dynamic, so that one compilation serves all batches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x / rms(x) * weight over the last dimension (arXiv 1910.07467)."""
    wide = _wide(x)
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return (wide * scale * _wide(weight)).to(x.dtype)


def rms_norm_backward(
    x: Tensor, weight: Tensor, epsilon: float, gradient: Tensor, residual: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient of x, with that of the residual branch added to it, and `rms_norm(x)` once more."""
    wide, weight_wide = _wide(x), _wide(weight)
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    normed = wide * scale
    inner = _wide(gradient) * weight_wide
    back = scale * (inner - normed * (inner * normed).mean(-1, keepdim=True))
    return (back + _wide(residual)).to(x.dtype), (normed * weight_wide).to(x.dtype)


def _rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = heads.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def rotate(heads: Tensor, cos: Tensor, sin: Tensor, norm: Tensor | None, epsilon: float) -> Tensor:
    """Heads, [T, n, d], normed where the model does so, and rotated by their positions' angles, [T, d / 2]."""
    wide = _wide(heads)
    if norm is not None:
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon) * _wide(norm)
    return _rotated(wide, cos.unsqueeze(1), sin.unsqueeze(1)).to(heads.dtype)


def rotate_backward(
    heads: Tensor, cos: Tensor, sin: Tensor, norm: Tensor | None, epsilon: float, gradient: Tensor
) -> Tensor:
    """The gradient of the heads before norm and rotation; the way back of a rotation is the opposite one."""
    inner = _rotated(_wide(gradient), cos.unsqueeze(1), -sin.unsqueeze(1))
    if norm is not None:
        wide = _wide(heads)
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
        normed = wide * scale
        inner = inner * _wide(norm)
        inner = scale * (inner - normed * (inner * normed).mean(-1, keepdim=True))
    return inner.to(heads.dtype)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, [T, 2 I] -> [T, I] (arXiv 2002.05202)."""
    gate, up = _wide(gate_up).chunk(2, dim=-1)
    return (F.silu(gate) * up).to(gate_up.dtype)


def swiglu_backward(gate_up: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of gate and up, [T, 2 I], and `swiglu(gate_up)` once more."""
    gate, up = _wide(gate_up).chunk(2, dim=-1)
    wide, sigmoid = _wide(gradient), torch.sigmoid(gate)
    silu = gate * sigmoid
    of_gate = wide * up * (sigmoid + silu * (1 - sigmoid))
    return torch.cat([of_gate, wide * silu], dim=-1).to(gate_up.dtype), (silu * up).to(gate_up.dtype)


def row_logsumexp(logits: Tensor) -> Tensor:
    """[N, V] -> [N]."""
    return logits.logsumexp(-1)


def others_gradient(logits: Tensor, others: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of the logits, [N, V], from that of their logsumexp `others`, [N]; 0 where a logit is -inf."""
    return torch.exp(logits - others.unsqueeze(-1)) * gradient.unsqueeze(-1)


_COMPILED: dict[Callable[..., object], Callable[..., object]] = {}


def fused(function: Callable[P, R], device: torch.device) -> Callable[P, R]:
    """The function as one kernel on a GPU; as it is elsewhere, or where nothing can be compiled."""
    if device.type != "cuda" or not compiler_works():
        return function
    if function not in _COMPILED:
        _COMPILED[function] = torch.compile(function, dynamic=True, fullgraph=True)
    return _COMPILED[function]  # type: ignore[return-value]


def compiler_works() -> bool:
    """Whether kernels can be compiled here: Triton needs a C compiler."""
    global _compiler_works
    if _compiler_works is None:
        _compiler_works = _try_compiler()
    return _compiler_works


_compiler_works: bool | None = None


def _try_compiler() -> bool:
    try:
        probe = torch.ones(8, 8, device="cuda")
        torch.compile(rms_norm, dynamic=True, fullgraph=True)(probe, probe[0], 1e-6)
    except Exception:  # noqa: BLE001 - whatever is missing, the step is computed without it
        return False
    return True
