"""What these tests share."""

from __future__ import annotations

from tests.unit.trainer.core.fixtures import (
    adapter,
    base,
    fresh,
    model_folder,
    one_thread,
    samples,
    way,
    ways,
    weights,
)

__all__ = ["adapter", "base", "fresh", "model_folder", "one_thread", "samples", "way", "ways", "weights"]
