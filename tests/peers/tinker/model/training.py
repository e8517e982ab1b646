"""Forward, backward and AdamW of one training run."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from tinker.types import AdamParams

from tests.peers.tinker.model.lora import BaseModel, Lora
from tests.peers.tinker.model.wire import Example, TrainRequest


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint keeps; `optimizer` is torch's own state, or None in weights for a sampler."""

    lora: Lora
    optimizer: dict[str, Any] | None


class Trainee:
    """An adapter being trained: its weights, their gradients so far, Adam's state."""

    def __init__(self, model: BaseModel, lora: Lora, optimizer: dict[str, Any] | None = None) -> None:
        self._model = model
        self.lora = lora
        self._adam = torch.optim.AdamW(lora.parameters())
        if optimizer is not None:
            self._adam.load_state_dict(copy.deepcopy(optimizer))

    @classmethod
    def from_snapshot(cls, model: BaseModel, snapshot: Snapshot, *, with_optimizer: bool) -> "Trainee":
        return cls(model, snapshot.lora.copy(trainable=True), snapshot.optimizer if with_optimizer else None)

    def snapshot(self, *, with_optimizer: bool) -> Snapshot:
        state = copy.deepcopy(self._adam.state_dict()) if with_optimizer else None
        return Snapshot(self.lora.copy(trainable=False), state)

    def run(self, request: TrainRequest) -> tuple[list[torch.Tensor], dict[str, float]]:
        """Log-probabilities of each datum's targets, in their shape, and metrics; gradients add up."""
        outputs, total = [], 0.0
        for example in request.examples:
            with torch.set_grad_enabled(not request.forward_only):
                logprobs = self._target_logprobs(example)
                loss = _loss(request, example, logprobs)
                if not request.forward_only:
                    loss.backward()  # type: ignore[no-untyped-call]
            outputs.append(logprobs.detach())
            total += float(loss.detach())
        return outputs, {"loss:sum": total}

    def step(self, params: AdamParams) -> dict[str, float]:
        """One step of AdamW by the gradients since the last; without any they are zero."""
        parameters = self.lora.parameters()
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        limit = params.grad_clip_norm if params.grad_clip_norm > 0 else float("inf")
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
        for group in self._adam.param_groups:
            group.update(
                lr=params.learning_rate,
                betas=(params.beta1, params.beta2),
                eps=params.eps,
                weight_decay=params.weight_decay,
            )
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        return {"grad_norm": norm}

    def _target_logprobs(self, example: Example) -> torch.Tensor:
        targets = example.inputs["target_tokens"]
        logprobs = torch.log_softmax(self._model.logits(example.tokens, self.lora), dim=-1)
        wide = targets if targets.ndim == 2 else targets[:, None]
        return logprobs.gather(-1, wide).reshape(targets.shape)


def check(request: TrainRequest, context_length: int, vocabulary: int) -> None:
    """ValueError for what the service would refuse as the user's mistake."""
    if not request.examples:
        raise ValueError("data is empty")
    for index, example in enumerate(request.examples):
        where = f"data[{index}]"
        if len(example.tokens) > context_length:
            raise ValueError(f"{where}: {len(example.tokens)} tokens exceed the context of {context_length}")
        targets = example.inputs.get("target_tokens")
        if targets is None or targets.ndim not in (1, 2) or targets.shape[0] != len(example.tokens):
            raise ValueError(f"{where}: target_tokens must have the shape (N,) or (N, K) with N input tokens")
        if int(targets.min()) < 0 or int(targets.max()) >= vocabulary or max(example.tokens) >= vocabulary:
            raise ValueError(f"{where}: a token is outside of the vocabulary")
        for name in _NEEDED.get(request.loss, ()):
            if name not in example.inputs:
                raise ValueError(f"{where}: the loss {request.loss} needs {name}")
        for name, value in example.inputs.items():
            if value.shape != targets.shape:
                raise ValueError(
                    f"{where}: {name} has the shape {tuple(value.shape)}, targets {tuple(targets.shape)}"
                )
    if request.loss not in _NEEDED:
        raise ValueError(f"the loss {request.loss} is not known here")


_NEEDED = {"cross_entropy": (), "importance_sampling": ("logprobs", "advantages")}


def _loss(request: TrainRequest, example: Example, logprobs: torch.Tensor) -> torch.Tensor:
    if request.loss == "importance_sampling":
        ratio = torch.exp(logprobs - example.inputs["logprobs"])
        return -(ratio * example.inputs["advantages"]).sum()
    weights = example.inputs.get("weights")
    return -(logprobs if weights is None else logprobs * weights).sum()
