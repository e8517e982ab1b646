"""Rotary position embedding: the angles of Llama, Qwen and Mistral, and the ways in which they are stretched."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from claas_trainer.weights.shape import Rope


def cosines_and_sines(rope: Rope, head_dim: int, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of each position's angles, two [T, head_dim / 2], float32."""
    frequencies, factor = _frequencies(rope, head_dim)
    angles = positions.to(torch.float32).unsqueeze(-1) * frequencies.to(positions.device)
    return angles.cos() * factor, angles.sin() * factor


def _frequencies(rope: Rope, head_dim: int) -> tuple[Tensor, float]:
    """Inverse frequencies, [head_dim / 2], and what the rotated vectors are scaled by."""
    plain = rope.theta ** -(torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)
    if rope.kind == "linear":
        return plain / rope.settings["factor"], 1.0
    if rope.kind == "llama3":
        return _llama3(rope, plain), 1.0
    if rope.kind == "yarn":
        return _yarn(rope, plain, head_dim)
    return plain, 1.0


def _llama3(rope: Rope, plain: Tensor) -> Tensor:
    """Long wavelengths are stretched, short ones kept, and those between are blended (Llama 3.1)."""
    settings = rope.settings
    low, high = settings["low_freq_factor"], settings["high_freq_factor"]
    rotations = settings["original_max_position_embeddings"] * plain / (2 * math.pi)
    kept = ((rotations - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * plain / settings["factor"] + kept * plain


def _yarn(rope: Rope, plain: Tensor, head_dim: int) -> tuple[Tensor, float]:
    """YaRN (arXiv 2309.00071): interpolation for few rotations, extrapolation for many, and a temperature."""
    settings = rope.settings
    factor, original = settings["factor"], settings["original_max_position_embeddings"]

    def dimension(rotations: float) -> float:
        return head_dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    first, last = dimension(settings.get("beta_fast", 32.0)), dimension(settings.get("beta_slow", 1.0))
    if settings.get("truncate", 1.0):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0.0), min(last, head_dim - 1.0)
    ramp = (torch.arange(head_dim // 2).float() - first) / max(last - first, 1e-3)
    kept = 1 - ramp.clamp(0, 1)
    blended = plain / factor * (1 - kept) + plain * kept
    temperature = settings.get("attention_factor")
    if temperature is None:
        scale, all_dims = settings.get("mscale"), settings.get("mscale_all_dim")
        if scale and all_dims:
            temperature = _temperature(factor, scale) / _temperature(factor, all_dims)
        else:
            temperature = _temperature(factor, 1.0)
    return blended, temperature


def _temperature(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0
