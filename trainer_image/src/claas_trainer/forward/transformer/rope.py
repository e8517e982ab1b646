"""Rotary position embedding: the angles of each position."""

from __future__ import annotations

import torch
from torch import Tensor

from claas_trainer.model.shape import Rope


def cosines_and_sines(rope: Rope, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of each position's angles, two [T, head_dim / 2], float32."""
    frequencies = torch.tensor(rope.frequencies, dtype=torch.float32)
    angles = positions.to(torch.float32).unsqueeze(-1) * frequencies.to(positions.device)
    return angles.cos() * rope.scale, angles.sin() * rope.scale
