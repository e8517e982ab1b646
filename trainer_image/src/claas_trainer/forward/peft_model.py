"""A transformers model with a LoRA adapter attached by PEFT: the generic forward.

Works for any causal language model that transformers and PEFT know. The adapter is attached for one step and removed
afterwards, which leaves the base model unchanged for the next one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from claas_trainer.forward.weights.finite import ADVICE, is_finite
from claas_trainer.model.errors import model_errors
from claas_trainer.model.lora import AdapterWeights, published_name, wrap
from claas_trainer.sdpo.batch import TokenBatch
from claas_trainer.sdpo.errors import AdapterError, WeightsError
from claas_trainer.sdpo.parameters import AdapterParameters, Layout
from claas_trainer.sdpo.policy import Network, PolicyModel, StudentPass


class ResponseHead(nn.Module):
    """The model's head, applied to the chosen positions only, in float32 for any dtype of the weights. It replaces
    the head inside the model, so that any processing of the logits afterwards (scaling, a soft cap) still happens.
    """

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head = head
        self.positions: Tensor | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, T, H] -> [N, V], at `positions` of the flattened [B * T]; [B, T, V] without positions."""
        chosen = hidden if self.positions is None else hidden.flatten(0, 1)[self.positions]
        bias = None if self.head.bias is None else self.head.bias.float()
        return F.linear(chosen.float(), self.head.weight.float(), bias)


class AdaptedModel(PolicyModel):
    """The `PolicyModel` of a transformers model; created by `attached`.

    `peft` can generate like any model. The features are the logits themselves, because a model may process them after
    its head (scaling, a soft cap).
    """

    def __init__(self, peft: PeftModel, head: ResponseHead) -> None:
        self.peft = peft
        self._head = head
        self._parameters = {
            published_name(name): parameter for name, parameter in peft.named_parameters() if parameter.requires_grad
        }
        self.layout = Layout({name: self._parameters[name].shape for name in sorted(self._parameters)})
        self.vocabulary_size = head.head.weight.shape[0]
        self._limits = rope_limits(peft.config)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self._head.head.weight.device

    def trainable(self) -> dict[str, nn.Parameter]:
        """The adapter's parameters by published name, float32."""
        return dict(self._parameters)

    def place(self, masters: Tensor) -> AdapterParameters:
        self._placed = AdapterParameters(self.layout, masters, self.device)
        return self._placed

    def refresh(self, average: Tensor | None = None) -> None:
        self._average = self._average if average is None else average
        self._load(self._placed.flat)

    def clear(self) -> None:
        self._average = None
        if hasattr(self, "_placed"):
            del self._placed

    def features(self, batch: TokenBatch, network: Network) -> Tensor:
        with torch.no_grad():
            if network is Network.BASE:
                with self.peft.disable_adapter():
                    return self._logits(batch)
            if network is Network.STUDENT:
                return self._logits(batch)
            assert self._average is not None, "refresh was given no average"
            self._load(self._average)
            try:
                return self._logits(batch)
            finally:
                self._load(self._placed.flat)

    def student(self, batch: TokenBatch) -> StudentPass:
        return _PeftPass(self._logits(batch), self._parameters, self._placed.gradients)

    def logits(self, features: Tensor) -> Tensor:
        return features.clone()

    def features_gradient(self, gradient: Tensor) -> Tensor:
        return gradient

    def _logits(self, batch: TokenBatch) -> Tensor:
        """Logits at the response positions, [N, V], float32."""
        groups = alike(batch.lengths, self._limits)
        if len(groups) == 1:
            return self._forward(batch)
        parts = [batch.part(group) for group in groups]
        logits = torch.cat([self._forward(part) for part, _ in parts])
        return logits[torch.cat([places for _, places in parts]).argsort()]

    def _forward(self, batch: TokenBatch) -> Tensor:
        ids, self._head.positions = batch.padded()
        try:
            # No attention mask: padding is on the right, where the causal mask hides it.
            logits: Tensor = self.peft(input_ids=ids, use_cache=False).logits
        finally:
            self._head.positions = None
        return logits

    def _load(self, flat: Tensor) -> None:
        with torch.no_grad():
            for name, values in self.layout.views(flat).items():
                self._parameters[name].copy_(values)

    _average: Tensor | None = None
    _placed: AdapterParameters


def rope_limits(config: PretrainedConfig) -> tuple[int, ...]:
    """The lengths beyond which a model uses other RoPE frequencies (LongRoPE, arXiv 2402.13753). transformers decides
    by the longest sequence of a forward pass, for all of them."""
    found = getattr(config.get_text_config(), "rope_parameters", None) or {}
    each = [value for value in found.values() if isinstance(value, Mapping)] or [found]
    kinds = [one for one in each if one.get("rope_type") == "longrope"]
    return tuple(sorted({int(one["original_max_position_embeddings"]) for one in kinds}))


def alike(lengths: Sequence[int], limits: Sequence[int]) -> list[list[int]]:
    """Groups the sequences' indices so that all sequences of a group are on the same side of each limit."""
    groups: dict[tuple[bool, ...], list[int]] = {}
    for index, length in enumerate(lengths):
        groups.setdefault(tuple(length > limit for limit in limits), []).append(index)
    return list(groups.values())


class _PeftPass(StudentPass):
    def __init__(self, graph: Tensor, parameters: Mapping[str, nn.Parameter], into: Mapping[str, Tensor]) -> None:
        self._graph = graph
        self._parameters = parameters
        self._into = into
        self.features = graph.detach()

    def backward(self, gradient: Tensor) -> None:
        names = list(self._parameters)
        graph = self.__dict__.pop("_graph")
        found = torch.autograd.grad(graph, [self._parameters[name] for name in names], gradient)
        for name, piece in zip(names, found, strict=True):
            self._into[name].add_(piece)


def load_base(folder: Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Loads the base model on the CPU, without gradients or dropout; in its own dtype unless another is given.

    Raises:
        WeightsError: the folder has no usable model, or some of its weights are missing or not finite.
    """
    with model_errors(folder, "model"):
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype or "auto", local_files_only=True, output_loading_info=True
        )
    missing = sorted(report["missing_keys"])
    if missing:
        # transformers would replace them with random weights.
        raise WeightsError(f"{folder}: {len(missing)} weights are missing there, such as {missing[0]}")
    for name, parameter in model.named_parameters():
        if not is_finite(parameter):
            raise WeightsError(f"{folder}: weight {name} has values that are NaN or infinite; {ADVICE}")
    for tensor in (*model.parameters(), *model.buffers()):
        # transformers maps files: without this, their bytes would be read at first use, during the pause.
        tensor.data = tensor.data.clone()
    return model.eval().requires_grad_(False)


@contextmanager
def attached(base: PreTrainedModel, adapter: AdapterWeights) -> Iterator[AdaptedModel]:
    """Context manager: the base model with the adapter attached, removed again on exit.

    Raises:
        AdapterError: the adapter's tensors do not fit the base model, or belong to its head.
    """
    head = base.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise AdapterError(f"{type(base).__name__}: its head is not a linear layer; this model can't be trained")
    # PEFT draws random initial weights, which are overwritten at once. Keep the caller's generator unchanged.
    with torch.random.fork_rng():
        peft = wrap(base, adapter)
    try:
        if base.get_output_embeddings() is not head:
            raise AdapterError("target modules: the head can't be a target; name other layers")
        response_head = ResponseHead(head)
        base.set_output_embeddings(response_head)
        model = AdaptedModel(peft, response_head)
        _fill(model.trainable(), adapter)
        yield model
    finally:
        _detach(base, peft, head)


def _fill(parameters: dict[str, nn.Parameter], adapter: AdapterWeights) -> None:
    differing = sorted(parameters.keys() ^ adapter.tensors.keys())
    if differing:
        side = "lacks" if differing[0] in parameters else "has an unknown"
        raise AdapterError(f"the adapter {side} tensor {differing[0]}: it belongs to another base model")
    with torch.no_grad():
        for name, parameter in parameters.items():
            tensor = adapter.tensors[name]
            if tensor.shape != parameter.shape:
                raise AdapterError(
                    f"the adapter's {name} is {tuple(tensor.shape)}, the base model needs "
                    f"{tuple(parameter.shape)}: it belongs to another base model or has another rank"
                )
            parameter.copy_(tensor)


def _detach(base: PreTrainedModel, peft: PeftModel, head: nn.Linear) -> None:
    base.set_output_embeddings(head)
    peft.unload()
    # PEFT leaves attributes on the model, which would make the next adapter look like a second one.
    if hasattr(base, "peft_config"):
        del base.peft_config
