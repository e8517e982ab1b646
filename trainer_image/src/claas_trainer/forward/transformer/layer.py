"""One decoder layer: forward, and a hand-written backward.

Written by hand because it decides what a step costs: which values are saved for the backward pass (all that are not
cheap to recompute), which are recomputed there (norms, SwiGLU), and that adding the residual takes no pass of its
own. A checkpointed layer saves its input only and is recomputed up to `gate_up`; its output is not needed again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from claas_trainer.forward.transformer.attention import Attention, Packing
from claas_trainer.forward.transformer.lora import Lora, add_gradients, lora_backward, lora_forward
from claas_trainer.forward.weights.source import LayerView
from claas_trainer.kernels import elementwise
from claas_trainer.model.shape import ModelShape


@dataclass(frozen=True)
class LayerLoras:
    """The adapters of one layer's four fused linear layers; None for a layer without adapter."""

    qkv: Lora | None = None
    o: Lora | None = None
    gate_up: Lora | None = None
    down: Lora | None = None


@dataclass(frozen=True)
class Sequences:
    """Batch data for all layers: the packing, and cos and sin of the positions, [T, head_dim / 2]."""

    packing: Packing
    cos: Tensor
    sin: Tensor


@dataclass
class _Kept:
    """Values of a forward pass that its backward pass needs."""

    x: Tensor
    qkv: Tensor
    qkv_down: Tensor | None
    attention: Attention
    attended: Tensor
    o_down: Tensor | None
    middle: Tensor
    gate_up: Tensor
    gate_up_down: Tensor | None
    down_down: Tensor | None = None


class Layer:
    """A layer's weights and adapters, applied to one batch.

    `rows`: the positions whose output is needed after attention, such as the response positions in a model's last
    layer; None means all.
    """

    def __init__(
        self,
        shape: ModelShape,
        weights: LayerView,
        loras: LayerLoras,
        sequences: Sequences,
        rows: Tensor | None = None,
    ) -> None:
        self._shape = shape
        self._weights = weights
        self._loras = loras
        self._sequences = sequences
        self._rows = rows

    def forward(self, x: Tensor) -> Tensor:
        """[T, hidden] -> [T or rows, hidden]. Saves nothing and overwrites x."""
        return self._output(self.until_gate_up(x, keep=False, overwrite=True), overwrite=True)

    def forward_keeping(self, x: Tensor) -> tuple[Tensor, LayerBackward]:
        """The same, with the backward pass; leaves x unchanged."""
        kept = self.until_gate_up(x, keep=True)
        return self._output(kept), LayerBackward(self, x, kept)

    def checkpoint(self, x: Tensor) -> tuple[Tensor, LayerBackward]:
        """The same, but saves the input only; the backward pass recomputes the rest."""
        return self._output(self.until_gate_up(x, keep=False), overwrite=True), LayerBackward(self, x, None)

    def until_gate_up(self, x: Tensor, *, keep: bool, overwrite: bool = False) -> _Kept:
        """The forward pass without SwiGLU and the down projection; `keep` allows a backward pass through
        attention."""
        shape, weights, loras = self._shape, self._weights, self._loras
        normed = self._norm(x, weights.input_norm)
        qkv, qkv_down = lora_forward(normed, weights.qkv, weights.qkv_bias, loras.qkv)
        del normed
        heads = (shape.heads, shape.kv_heads)
        q, k = elementwise.rotate(qkv, *self._angles, weights.q_norm, weights.k_norm, shape.norm_epsilon, heads)
        v = torch.unflatten(qkv[:, shape.query_width + shape.key_width :], -1, (shape.kv_heads, shape.head_dim))
        attention = Attention(q, k, v, self._sequences.packing, keep=keep)
        attended = attention.output
        residual = x
        if self._rows is not None:
            attended, residual, overwrite = attended[self._rows], x[self._rows], True
        middle, o_down = lora_forward(attended, weights.o, None, loras.o, residual, overwrite=overwrite)
        normed = self._norm(middle, weights.post_norm)
        gate_up, gate_up_down = lora_forward(normed, weights.gate_up, None, loras.gate_up)
        return _Kept(x, qkv, qkv_down, attention, attended, o_down, middle, gate_up, gate_up_down)

    def _output(self, kept: _Kept, *, overwrite: bool = False) -> Tensor:
        active = elementwise.swiglu(kept.gate_up)
        weight, lora = self._weights.down, self._loras.down
        output, kept.down_down = lora_forward(active, weight, None, lora, kept.middle, overwrite=overwrite)
        return output

    def backward(self, kept: _Kept, gradient: Tensor) -> Tensor:
        """Gradient of x from that of the output; adds to the adapters' gradients."""
        weights, loras, epsilon = self._weights, self._loras, self._shape.norm_epsilon
        of_active, of_down = lora_backward(gradient, weights.down, loras.down)
        of_gate_up, active = elementwise.swiglu_backward(kept.gate_up, of_active)
        add_gradients(loras.down, active, kept.down_down, gradient, of_down)
        del of_active, active

        of_normed, of_down = lora_backward(of_gate_up, weights.gate_up, loras.gate_up)
        of_middle, normed = elementwise.rms_norm_backward(
            kept.middle, weights.post_norm, epsilon, of_normed, gradient
        )
        add_gradients(loras.gate_up, normed, kept.gate_up_down, of_gate_up, of_down)
        del of_normed, normed, of_gate_up

        of_attended, of_down = lora_backward(of_middle, weights.o, loras.o)
        add_gradients(loras.o, kept.attended, kept.o_down, of_middle, of_down)
        if self._rows is not None:
            of_attended = of_attended.new_zeros(kept.attention.output.shape).index_copy_(0, self._rows, of_attended)
            of_middle = torch.zeros_like(kept.x).index_copy_(0, self._rows, of_middle)
        gradients = kept.attention.backward(of_attended)
        of_qkv = elementwise.rotate_backward(
            kept.qkv, *self._angles, weights.q_norm, weights.k_norm, epsilon, gradients
        )
        del of_attended, gradients

        of_normed, of_down = lora_backward(of_qkv, weights.qkv, loras.qkv)
        of_x, normed = elementwise.rms_norm_backward(kept.x, weights.input_norm, epsilon, of_normed, of_middle)
        add_gradients(loras.qkv, normed, kept.qkv_down, of_qkv, of_down)
        return of_x

    @property
    def _angles(self) -> tuple[Tensor, Tensor]:
        return self._sequences.cos, self._sequences.sin

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return elementwise.rms_norm(x, weight, self._shape.norm_epsilon)


class LayerBackward:
    """The backward pass of one forward pass of a layer; can be called once. Without `kept`, the forward pass is
    recomputed first, up to the down projection, whose output is not needed."""

    def __init__(self, layer: Layer, x: Tensor, kept: _Kept | None) -> None:
        self._layer = layer
        self._x = x
        self._kept = kept

    def __call__(self, gradient: Tensor) -> Tensor:
        kept, self._kept = self._kept or self._layer.until_gate_up(self._x, keep=True), None
        return self._layer.backward(kept, gradient)
