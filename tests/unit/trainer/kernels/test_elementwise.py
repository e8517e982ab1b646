"""What is written out by hand, forward and back, against autograd through the formulas, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from claas_trainer.forward.transformer.attention import Attention, Packing
from claas_trainer.forward.transformer.lora import (
    FusedPart,
    Lora,
    LoraGradient,
    add_gradients,
    lora_backward,
    lora_forward,
)
from claas_trainer.kernels import elementwise

EPSILON = 1e-5


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def leaf(*shape: int, seed: int = 0) -> Tensor:
    return drawn(*shape, seed=seed).requires_grad_()


def plain_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPSILON).sqrt() * weight


def plain_rotation(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = heads.shape[-1] // 2
    turned = torch.complex(heads[..., :half], heads[..., half:]) * torch.complex(cos, sin).unsqueeze(1)
    return torch.cat([turned.real, turned.imag], dim=-1)


def test_a_norm_and_its_way_back() -> None:
    x, weight, gradient, residual = leaf(5, 8), drawn(8, seed=1), drawn(5, 8, seed=2), drawn(5, 8, seed=3)
    normed = plain_norm(x, weight)
    (wanted,) = torch.autograd.grad(normed, x, gradient)
    with torch.no_grad():
        torch.testing.assert_close(elementwise.rms_norm(x, weight, EPSILON), normed)
        found, again = elementwise.rms_norm_backward(x, weight, EPSILON, gradient, residual)
    torch.testing.assert_close(found, wanted + residual)
    torch.testing.assert_close(again, normed)


@pytest.mark.parametrize("normed", [False, True])
def test_a_rotation_of_normed_heads_and_its_way_back(normed: bool) -> None:
    """Three heads of q and two of k, each of eight, and v behind them."""
    qkv, angles = leaf(5, 56), drawn(5, 4, seed=2)
    gradients = (drawn(5, 3, 8, seed=3), drawn(5, 2, 8, seed=4), drawn(5, 2, 8, seed=5))
    cos, sin = angles.cos() * 1.1, angles.sin() * 1.1
    norms: tuple[Tensor | None, Tensor | None] = (drawn(8, seed=6), drawn(8, seed=7)) if normed else (None, None)
    turned = []
    for heads, norm in zip((qkv[:, :24].view(5, 3, 8), qkv[:, 24:40].view(5, 2, 8)), norms, strict=True):
        turned.append(plain_rotation(heads if norm is None else plain_norm(heads, norm), cos, sin))
    (wanted,) = torch.autograd.grad([*turned, qkv[:, 40:].view(5, 2, 8)], qkv, gradients)
    with torch.no_grad():
        rotated = elementwise.rotate(qkv, cos, sin, norms[0], norms[1], EPSILON, (3, 2))
        for found, expected in zip(rotated, turned, strict=True):
            torch.testing.assert_close(found, expected)
        back = elementwise.rotate_backward(qkv, cos, sin, norms[0], norms[1], EPSILON, gradients)
    torch.testing.assert_close(back, wanted)


def test_swiglu_and_its_way_back() -> None:
    gate_up, gradient = leaf(5, 12), drawn(5, 6, seed=1)
    gate, up = gate_up.chunk(2, dim=-1)
    active = gate * gate.sigmoid() * up
    (wanted,) = torch.autograd.grad(active, gate_up, gradient)
    with torch.no_grad():
        torch.testing.assert_close(elementwise.swiglu(gate_up), active)
        found, again = elementwise.swiglu_backward(gate_up, gradient)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(again, active)


def test_what_the_way_back_makes_again_is_what_the_forward_made_to_the_bit() -> None:
    """A checkpointed layer has its gradient from the one where another layer has it from the other."""
    gate_up, x, weight = drawn(50, 60).float(), drawn(50, 30, seed=1).float(), drawn(30, seed=2).float()
    _, again = elementwise.swiglu_backward(gate_up.clone(), x)
    assert torch.equal(again, elementwise.swiglu(gate_up))
    _, again = elementwise.rms_norm_backward(x, weight, EPSILON, x, x)
    assert torch.equal(again, elementwise.rms_norm(x, weight, EPSILON))


def test_the_others_gradient_is_a_softmax_with_nothing_where_a_logit_is_minus_infinity() -> None:
    logits, gradient = leaf(5, 9), drawn(5, seed=1)
    masked = logits.masked_fill(torch.arange(9) < 3, -torch.inf)
    others = masked.logsumexp(-1)
    (wanted,) = torch.autograd.grad(others, logits, gradient)
    with torch.no_grad():
        torch.testing.assert_close(elementwise.row_logsumexp(masked), others)
        found = elementwise.others_gradient(masked, others, gradient, torch.float64)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("lengths", [(7,), (3, 3), (2, 5, 5, 1)], ids=str)
def test_attention_over_packed_sequences_is_that_of_each_alone(lengths: tuple[int, ...], padded: bool) -> None:
    """`padded`: as a GPU computes sequences of unlike lengths."""
    packing = Packing(lengths, torch.device("cpu"))
    if padded:
        packing.places = torch.cat([torch.arange(length) + row * packing.width for row, length in enumerate(lengths)])
    total = sum(lengths)
    q, k, v = leaf(total, 4, 6), leaf(total, 2, 6, seed=1), leaf(total, 2, 6, seed=2)
    gradient = drawn(total, 24, seed=3)
    pieces = []
    for qs, ks, vs in zip(*(torch.split(x, list(lengths)) for x in (q, k, v)), strict=True):
        ks, vs = (x.repeat_interleave(2, dim=1) for x in (ks, vs))
        scores = torch.einsum("qhd,khd->hqk", qs, ks) / 6**0.5
        later = torch.ones(len(qs), len(qs)).triu(1).bool()
        weights = scores.masked_fill(later, -torch.inf).softmax(-1)
        pieces.append(torch.einsum("hqk,khd->qhd", weights, vs).flatten(1))
    output = torch.cat(pieces)
    wanted = torch.autograd.grad(output, (q, k, v), gradient)
    ours = Attention(q, k, v, packing, keep=True)
    torch.testing.assert_close(ours.output, output)
    for found, expected in zip(ours.backward(gradient), wanted, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("down_kept", [False, True])
@pytest.mark.parametrize("start", ["nothing", "bias", "residual"])
def test_a_fused_linear_layer_with_adapters_on_some_of_its_parts(
    start: str, down_kept: bool, overwrite: bool
) -> None:
    """Three parts of 4, 2 and 3 rows, the second without an adapter."""
    rank, scaling = 2, 1.7
    x, weight, gradient = leaf(5, 6), drawn(9, 6, seed=1), drawn(5, 9, seed=2)
    bias = drawn(9, seed=3) if start == "bias" else None
    residual = drawn(5, 9, seed=4) if start == "residual" else None
    a = [leaf(rank, 6, seed=5), leaf(rank, 6, seed=6)]
    b = [leaf(4, rank, seed=7), leaf(3, rank, seed=8)]
    first, third = (scaling * (x @ one.t()) @ other.t() for one, other in zip(a, b, strict=True))
    y = x @ weight.t() + torch.cat([first, torch.zeros(5, 2, dtype=torch.float64), third], dim=-1)
    for added in (bias, residual):
        y = y if added is None else y + added
    wanted = torch.autograd.grad(y, [x, *a, *b], gradient)

    with torch.no_grad():
        blocks = torch.zeros(9, 2 * rank).double()
        blocks[:4, :rank], blocks[6:, rank:] = b
        into = LoraGradient(torch.zeros(2 * rank, 6).double(), tuple(torch.zeros_like(each) for each in b))
        parts = (FusedPart("a0", "b0", 0, 4), FusedPart("a2", "b2", 6, 3))
        lora = Lora(torch.cat(a), blocks, parts, scaling, into)
        given = None if residual is None else residual.clone()
        overwrite = overwrite and given is not None
        found, down = lora_forward(x, weight, bias, lora, given, overwrite=overwrite)
        torch.testing.assert_close(found, y)
        if residual is not None and given is not None and not overwrite:
            assert torch.equal(given, residual)
        of_x, of_down = lora_backward(gradient, weight, lora)
        torch.testing.assert_close(of_x, wanted[0])
        # Twice, as two micro-batches are added up.
        for _ in range(2):
            add_gradients(lora, x, down if down_kept else None, gradient, of_down)
    torch.testing.assert_close(into.a, 2 * torch.cat(wanted[1:3]))
    for each, expected in zip(into.b, wanted[3:], strict=True):
        torch.testing.assert_close(each, 2 * expected)


@pytest.mark.parametrize("start", ["nothing", "bias", "residual"])
def test_a_linear_layer_without_adapters_is_a_plain_one(start: str) -> None:
    x, weight, gradient = leaf(5, 6), drawn(9, 6, seed=1), drawn(5, 9, seed=2)
    bias = drawn(9, seed=3) if start == "bias" else None
    residual = drawn(5, 9, seed=4) if start == "residual" else None
    y = x @ weight.t()
    for added in (bias, residual):
        y = y if added is None else y + added
    (wanted,) = torch.autograd.grad(y, x, gradient)
    with torch.no_grad():
        found, down = lora_forward(x, weight, bias, None, residual)
        of_x, of_down = lora_backward(gradient, weight, None)
    torch.testing.assert_close(found, y)
    torch.testing.assert_close(of_x, wanted)
    assert down is None
    assert of_down is None
