"""A deliberately plain step, for comparison: what one writes first.

Separate q, k, v, gate and up; LoRA as PEFT computes it (inputs cast up to float32); padded micro-batches under
autograd; the head in chunks of response tokens under checkpointing; log-softmax over the vocabulary, top-K with tail.
Batched, no base forward, one backward for each micro-batch: the mistakes that cost most are not made.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from claas_trainer.forward.transformer.rope import cosines_and_sines
from claas_trainer.forward.weights.source import LayerView, WeightSource
from claas_trainer.sdpo.batch import TokenBatch, TokenSample
from claas_trainer.sdpo.losses.sdpo import sdpo_token_losses
from claas_trainer.sdpo.losses.support import Support, support_logprobs

_CHUNK = 1024


class PlainStep:
    """Adapters and AdamW over the source's weights; `take` is one step."""

    def __init__(self, source: WeightSource, rank: int, micro_batch: int, *, checkpointed: bool) -> None:
        self._source, self._shape = source, source.shape
        self._micro_batch, self._checkpointed = micro_batch, checkpointed
        self._adapters = [self._layer_adapters(rank) for _ in range(self._shape.layers)]
        self._parameters = [p for layer in self._adapters for pair in layer.values() for p in pair]
        self._optimizer = torch.optim.AdamW(self._parameters, lr=3e-5)

    def _layer_adapters(self, rank: int) -> dict[str, tuple[Tensor, Tensor]]:
        shape = self._shape
        hidden, inner = shape.hidden, shape.intermediate
        sizes = {
            "q": (hidden, shape.query_width), "k": (hidden, shape.key_width), "v": (hidden, shape.key_width),
            "o": (shape.query_width, hidden), "gate": (hidden, inner), "up": (hidden, inner), "down": (inner, hidden),
        }  # fmt: skip
        device = self._source.device
        return {
            name: (
                (torch.randn(rank, wide, device=device) * wide**-0.5).requires_grad_(),
                (torch.randn(out, rank, device=device) * 0.01).requires_grad_(),
            )
            for name, (wide, out) in sizes.items()
        }

    def take(self, samples: Sequence[TokenSample]) -> float:
        """One step; gives the loss."""
        device = self._source.device
        tokens = sum(len(sample.response_ids) for sample in samples)
        total = torch.zeros((), device=device)
        for start in range(0, len(samples), self._micro_batch):
            group = samples[start : start + self._micro_batch]
            responses = [sample.response_ids for sample in group]
            batch = TokenBatch.of([sample.student_prompt_ids for sample in group], responses, device)
            hinted = TokenBatch.of([sample.teacher_prompt_ids for sample in group], responses, device)
            with torch.no_grad():
                taught = self._hidden(hinted, adapted=False)
            hidden = self._hidden(batch, adapted=True)
            losses = [
                checkpoint(self._loss, *pieces, use_reentrant=False)
                for pieces in zip(*(torch.split(x, _CHUNK) for x in (hidden, taught, batch.targets)), strict=True)
            ]
            loss = torch.stack(losses).sum() / tokens
            torch.autograd.backward(loss)
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(total)

    def _loss(self, hidden: Tensor, taught: Tensor, targets: Tensor) -> Tensor:
        head = self._source.head
        student, teacher = (hidden @ head.t()).float(), (taught @ head.t()).float()
        chosen = support_logprobs(student, teacher, Support.TOP_K_TAIL, 100)
        sampled = student.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        return sdpo_token_losses(*chosen, sampled, sampled.detach(), alpha=0.5, is_clip=5.0).loss.sum()

    def _hidden(self, batch: TokenBatch, *, adapted: bool) -> Tensor:
        ids, rows = batch.padded()
        x = self._source.embed(ids.flatten()).view(*ids.shape, -1)
        positions = torch.arange(ids.shape[1], device=ids.device)
        angles = cosines_and_sines(self._shape.rope, positions)
        for index, adapters in enumerate(self._adapters):
            arguments = (x, self._source.layer(index), adapters if adapted else {}, angles)
            if adapted and self._checkpointed:
                x = checkpoint(self._layer, *arguments, use_reentrant=False)
            else:
                x = self._layer(*arguments)
        chosen = x.flatten(0, 1)[rows]
        return F.rms_norm(chosen, (self._shape.hidden,), self._source.final_norm, self._shape.norm_epsilon)

    def _layer(
        self,
        x: Tensor,
        weights: LayerView,
        adapters: dict[str, tuple[Tensor, Tensor]],
        angles: tuple[Tensor, Tensor],
    ) -> Tensor:
        shape = self._shape
        normed = self._norm(x, weights.input_norm)
        matrices = torch.split(weights.qkv, [shape.query_width, shape.key_width, shape.key_width])
        q, k, v = (
            torch.unflatten(_linear(normed, matrix, adapters.get(name)), -1, (-1, shape.head_dim)).transpose(1, 2)
            for name, matrix in zip("qkv", matrices, strict=True)
        )
        if weights.q_norm is not None and weights.k_norm is not None:
            q, k = self._norm(q, weights.q_norm), self._norm(k, weights.k_norm)
        q, k = _rotated(q, *angles), _rotated(k, *angles)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + _linear(out.transpose(1, 2).flatten(2), weights.o, adapters.get("o"))
        normed = self._norm(x, weights.post_norm)
        gate_matrix, up_matrix = weights.gate_up.chunk(2)
        gate = _linear(normed, gate_matrix, adapters.get("gate"))
        up = _linear(normed, up_matrix, adapters.get("up"))
        return x + _linear(F.silu(gate) * up, weights.down, adapters.get("down"))

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self._shape.norm_epsilon)


def _linear(x: Tensor, weight: Tensor, adapter: tuple[Tensor, Tensor] | None) -> Tensor:
    y = F.linear(x, weight)
    if adapter is None:
        return y
    a, b = adapter
    return y + (2.0 * F.linear(F.linear(x.float(), a), b)).to(y.dtype)


def _rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = heads.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(heads.dtype)
