"""A causal language model with many LoRA adapters beside it, each a set of tensors that a forward pass names."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch.nn.functional import linear
from transformers import AutoModelForCausalLM, AutoTokenizer

ALPHA = 32
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
UNEMBED = ("lm_head",)


@dataclass(frozen=True)
class LoraShape:
    """What a client chooses about an adapter; alpha is the service's own."""

    rank: int
    seed: int | None = None
    train_mlp: bool = True
    train_attn: bool = True
    train_unembed: bool = True

    def trains(self, module: str) -> bool:
        """Whether the linear layer of this name gets an adapter."""
        leaf = module.rsplit(".", 1)[-1]
        return (
            (self.train_attn and leaf in ATTENTION)
            or (self.train_mlp and leaf in MLP)
            or (self.train_unembed and leaf in UNEMBED)
        )


@dataclass(frozen=True)
class Lora:
    """Matrices A [rank, in] and B [out, rank] by module name."""

    shape: LoraShape
    matrices: dict[str, tuple[torch.Tensor, torch.Tensor]]

    def parameters(self) -> list[torch.Tensor]:
        return [matrix for pair in self.matrices.values() for matrix in pair]

    def copy(self, *, trainable: bool) -> "Lora":
        def fresh(matrix: torch.Tensor) -> torch.Tensor:
            return matrix.detach().clone().requires_grad_(trainable)

        return Lora(self.shape, {name: (fresh(a), fresh(b)) for name, (a, b) in self.matrices.items()})


class Tokenizer(Protocol):
    eos_token_id: int | None

    def decode(self, ids: list[int]) -> str: ...


class Cache(Protocol):
    """Keys and values of the tokens read so far."""


_active: ContextVar[Lora | None] = ContextVar("active LoRA", default=None)


class BaseModel:
    """The frozen model in float32 on the CPU. Safe to call from several threads."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self._model.eval().requires_grad_(False)
        self.context_length = int(self._model.config.max_position_embeddings)
        self.vocabulary = int(self._model.config.vocab_size)
        ours = {*ATTENTION, *MLP, *UNEMBED}
        self._layers = {
            name: module
            for name, module in self._model.named_modules()
            if isinstance(module, torch.nn.Linear) and name.rsplit(".", 1)[-1] in ours
        }
        for name, module in self._layers.items():
            module.register_forward_hook(_adapt(name))

    def new_lora(self, shape: LoraShape) -> Lora:
        """A random, B zero, as PEFT's default."""
        generator = torch.Generator()
        if shape.seed is None:
            generator.seed()
        else:
            generator.manual_seed(shape.seed)
        matrices = {}
        for name, layer in self._layers.items():
            if shape.trains(name):
                bound = 1 / layer.in_features**0.5
                a = torch.empty(shape.rank, layer.in_features).uniform_(-bound, bound, generator=generator)
                matrices[name] = (a.requires_grad_(), torch.zeros(layer.out_features, shape.rank).requires_grad_())
        return Lora(shape, matrices)

    def logits(self, tokens: list[int], lora: Lora | None) -> torch.Tensor:
        """[len(tokens), vocabulary]; row i is the distribution after token i."""
        with _using(lora):
            output: torch.Tensor = self._model(input_ids=torch.tensor([tokens]), use_cache=False).logits
        return output[0]

    def next_logits(self, tokens: torch.Tensor, lora: Lora | None, cache: Cache | None) -> tuple[torch.Tensor, Cache]:
        """Logits after each of `tokens` [batch, length], which follow those in `cache`, and the longer cache."""
        with _using(lora):
            output = self._model(input_ids=tokens, past_key_values=cache, use_cache=True)
        return output.logits, output.past_key_values


@contextmanager
def _using(lora: Lora | None) -> Iterator[None]:
    token = _active.set(lora)
    try:
        yield
    finally:
        _active.reset(token)


class _Hook(Protocol):
    def __call__(
        self, module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor | None: ...


def _adapt(name: str) -> _Hook:
    def hook(module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
        lora = _active.get()
        if lora is None or name not in lora.matrices:
            return None
        a, b = lora.matrices[name]
        return output + linear(linear(args[0], a), b) * (ALPHA / lora.shape.rank)

    return hook
