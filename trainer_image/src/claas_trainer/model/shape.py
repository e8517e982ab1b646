"""The shape of a base model, as the trainer's own forward needs it. `config_shape` reads it from a folder."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding (RoPE, arXiv 2104.09864): the frequency of each pair of head dimensions, in radians
    per token, and the factor for cosine and sine (YaRN's temperature, arXiv 2309.00071)."""

    frequencies: tuple[float, ...]
    scale: float = 1.0

    @classmethod
    def plain(cls, theta: float, head_dim: int) -> Rope:
        """RoPE without scaling: theta^(-2i / head_dim), in float32."""
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        return cls(tuple((1.0 / theta**exponents).tolist()))


@dataclass(frozen=True)
class ModelShape:
    """A decoder of the Llama family: Qwen3, Qwen2 and 2.5, Llama, Mistral.

    `head_dim` is the value in the configuration, which may differ from hidden / heads. `qk_norm`: RMSNorm on each
    head of q and k (Qwen3). `qkv_bias`: Qwen2. `tied`: the head is the embedding. `sliding_window`: how many tokens
    back attention reaches, None for no limit.
    """

    family: str
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rope: Rope
    norm_epsilon: float = 1e-6
    qk_norm: bool = False
    qkv_bias: bool = False
    tied: bool = False
    sliding_window: int | None = None

    @property
    def query_width(self) -> int:
        """Total width of the query heads, the input of `o_proj`."""
        return self.heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Total width of the key heads, and of the value heads."""
        return self.kv_heads * self.head_dim

    @property
    def qkv_width(self) -> int:
        """Rows of the fused qkv weight."""
        return self.query_width + 2 * self.key_width

    @property
    def layer_elements(self) -> int:
        """Elements of the matrices of one layer."""
        attention = (self.qkv_width + self.query_width) * self.hidden
        return attention + 3 * self.intermediate * self.hidden

    @property
    def head_elements(self) -> int:
        """Elements of the head."""
        return self.vocabulary * self.hidden
