"""The interface of a source of base weights, and the layout of the weights.

The layout is vLLM's own: q, k and v stacked in one matrix, gate and up in another. The weights of a running vLLM fit
as they are; weights in files are fused while they are read.
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

    `qkv`: [(heads + 2 kv_heads) * head_dim, hidden]; `qkv_bias`: one value per row of `qkv`, Qwen2 only. `o`:
    [hidden, heads * head_dim]. `gate_up`: [2 * intermediate, hidden]. `down`: [hidden, intermediate]. Norms:
    [hidden], those of q and k [head_dim], Qwen3 only.
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
    """A layer's weights as the forward reads them, each once in the forward pass and once in the backward pass: the
    fields of `LayerWeights`, which may be created on access."""

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
    """The base model's weights; never write to them.

    Between `acquire` and `release` they are on `device`; at other times only the attributes may be used.
    """

    shape: ModelShape
    dtype: torch.dtype
    """The dtype of the matrices, and of the activations multiplied with them."""
    device: torch.device

    @property
    @abstractmethod
    def resident_bytes(self) -> int:
        """Device memory that `acquire` takes."""

    @abstractmethod
    def acquire(self) -> None:
        """Bring the weights to the device. May return while copies are under way; reading waits for them."""

    @abstractmethod
    def release(self) -> None:
        """Free the device memory."""

    def expect(self, ids: Tensor) -> None:
        """Name the tokens that `embed` will be called with: token ids on the CPU, int64, [N], in any order,
        repetitions allowed. A source may prepare their embeddings."""
        return

    def close(self) -> None:
        """Free everything; nothing can be read afterwards."""
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
