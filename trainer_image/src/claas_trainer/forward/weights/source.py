"""The interface between the step and where base weights come from, and the layout that it speaks of.

The layout is vLLM's own: q, k and v stacked in one matrix, gate and up in another. Weights that a running vLLM holds
fit as they are; files are fused while they are read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from claas_trainer.model.shape import ModelShape


@dataclass(frozen=True)
class LayerWeights:
    """The weights of one decoder layer; all matrices [out, in].

    `qkv`: [(heads + 2 kv_heads) * head_dim, hidden]; `qkv_bias`: its rows, Qwen2 alone. `o`: [hidden, heads *
    head_dim]. `gate_up`: [2 * intermediate, hidden]. `down`: [hidden, intermediate]. Norms: [hidden], those of q and
    k [head_dim], Qwen3 alone.
    """

    input_norm: Tensor
    qkv: Tensor
    o: Tensor
    post_norm: Tensor
    gate_up: Tensor
    down: Tensor
    qkv_bias: Tensor | None = None
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None


class LayerView(Protocol):
    """What a layer reads of its weights, each of them once on its way there and once on its way back: the fields of
    `LayerWeights`, which may also be made on the spot."""

    @property
    def input_norm(self) -> Tensor: ...
    @property
    def qkv(self) -> Tensor: ...
    @property
    def o(self) -> Tensor: ...
    @property
    def post_norm(self) -> Tensor: ...
    @property
    def gate_up(self) -> Tensor: ...
    @property
    def down(self) -> Tensor: ...
    @property
    def qkv_bias(self) -> Tensor | None: ...
    @property
    def q_norm(self) -> Tensor | None: ...
    @property
    def k_norm(self) -> Tensor | None: ...


class WeightSource(ABC):
    """The base model's weights, read-only: whoever computes with them never writes to them.

    Between `acquire` and `release` they are on `device`; outside it nothing but the attributes may be used.
    """

    shape: ModelShape
    dtype: torch.dtype
    """The dtype of the matrices, and of the activations that are multiplied with them."""
    device: torch.device

    @property
    @abstractmethod
    def resident_bytes(self) -> int:
        """Device memory that `acquire` takes."""

    @abstractmethod
    def acquire(self) -> None:
        """Have the weights on the device. May return while copies are under way: reading them waits."""

    @abstractmethod
    def release(self) -> None:
        """Give the device's memory back."""

    def expect(self, ids: Tensor) -> None:
        """Be told which tokens `embed` will be asked for: token ids on the CPU, int64, [N], in any order and number.
        A source may get its embeddings ready by it."""
        return

    def close(self) -> None:
        """Let go of everything; nothing can be read after it."""
        return

    @abstractmethod
    def layer(self, index: int) -> LayerView:
        """The weights of one layer, from 0."""

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings of token ids, [T] -> [T, hidden]."""

    @property
    @abstractmethod
    def final_norm(self) -> Tensor:
        """[hidden]."""

    @property
    @abstractmethod
    def head(self) -> Tensor:
        """[vocabulary, hidden]."""
