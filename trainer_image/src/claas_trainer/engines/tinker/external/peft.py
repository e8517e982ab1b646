"""The service's weights of a dense Qwen3 under PEFT's names, checked against the base model's configuration.

The service exports `adapter_config.json` with `r` and `lora_alpha`, and tensors under the names of the model's
layers, with or without PEFT's prefix; the head is `unembed_tokens`, which the engine does not train.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from claas_contract.outcome import FailureReason
from claas_trainer.errors import EngineError, InputError
from claas_trainer.forward.weights.finite import is_finite
from claas_trainer.model.config_shape import read_shape
from claas_trainer.model.lora import LoraShape, config_file, plain_scale
from claas_trainer.model.shape import ModelShape
from claas_trainer.sdpo.errors import AdapterError, UnsupportedModelError
from claas_trainer.store.content import Bytes, FileContent
from claas_trainer.store.record import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE
from claas_trainer.store.tensors import Tensors

_PREFIX = "base_model.model."
_FAMILY = "qwen3"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_NAMED = 5


def exportable_shape(model: Path) -> ModelShape:
    """The shape of the base model in this folder. Raises InputError if its adapters can't be exported."""
    try:
        shape = read_shape(model)
        why = None if shape.family == _FAMILY else f"it is a {shape.family}"
    except UnsupportedModelError as error:
        why = str(error)
    if why is not None:
        raise InputError(
            f"spec.engine.tinker.export: only adapters of dense Qwen3 can be exported, and of the base model {why};"
            " leave export out and serve the adapter with spec.serving.tinkerProxy"
        )
    return shape


def adapter_sizes(shape: ModelShape, rank: int) -> dict[str, tuple[int, int]]:
    """Size of each tensor of a LoRA on all linear layers between embeddings and head, by its published name."""
    layers = {
        "self_attn.q_proj": (shape.hidden, shape.query_width),
        "self_attn.k_proj": (shape.hidden, shape.key_width),
        "self_attn.v_proj": (shape.hidden, shape.key_width),
        "self_attn.o_proj": (shape.query_width, shape.hidden),
        "mlp.gate_proj": (shape.hidden, shape.intermediate),
        "mlp.up_proj": (shape.hidden, shape.intermediate),
        "mlp.down_proj": (shape.intermediate, shape.hidden),
    }
    sizes: dict[str, tuple[int, int]] = {}
    for number in range(shape.layers):
        for layer, (inputs, outputs) in layers.items():
            name = f"{_PREFIX}model.layers.{number}.{layer}"
            sizes[f"{name}.lora_A.weight"] = (rank, inputs)
            sizes[f"{name}.lora_B.weight"] = (outputs, rank)
    return sizes


def effectless_files(shape: ModelShape, rank: int, seed: int) -> dict[str, FileContent]:
    """PEFT's two files of a LoRA without effect: A as PEFT begins it, B zero. Its alpha does not matter."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, size in sorted(adapter_sizes(shape, rank).items()):
        tensors[name] = torch.zeros(size)
        if ".lora_A." in name:
            tensors[name].uniform_(-(size[1] ** -0.5), size[1] ** -0.5, generator=generator)
    return _files(tensors, rank, rank)


def peft_files(
    config: object, tensors: Mapping[str, Tensor], shape: ModelShape, rank: int, where: str
) -> dict[str, FileContent]:
    """PEFT's two files. `config`: of the service; `where`: the checkpoint, for messages.

    Raises EngineError: NOT_FINITE if a value is NaN or infinite, else INVALID_INPUT with the tensors or the field
    that do not fit.
    """
    try:
        stored_rank, alpha = plain_scale(config, Path(ADAPTER_CONFIG_FILE))
    except AdapterError as error:
        raise _unusable(where, str(error)) from error
    if stored_rank != rank or not alpha > 0:
        raise _unusable(
            where, f"{ADAPTER_CONFIG_FILE} says rank {stored_rank} and alpha {alpha}, of an adapter of rank {rank}"
        )
    named = {_published(name): tensor for name, tensor in tensors.items()}
    _check(named, adapter_sizes(shape, rank), where)
    return _files(named, rank, alpha)


def _files(tensors: Mapping[str, Tensor], rank: int, alpha: float) -> dict[str, FileContent]:
    layers = tuple(sorted({name.split(".")[-3] for name in tensors}))
    return {
        ADAPTER_CONFIG_FILE: Bytes(config_file(LoraShape(rank, alpha, layers))),
        ADAPTER_WEIGHTS_FILE: Tensors(tensors, {"format": "pt"}),
    }


def _published(name: str) -> str:
    return name if name.startswith(_PREFIX) else _PREFIX + name


def _check(tensors: Mapping[str, Tensor], sizes: Mapping[str, tuple[int, int]], where: str) -> None:
    unknown = [name.removeprefix(_PREFIX) for name in tensors if name not in sizes]
    if unknown:
        raise _unusable(where, f"the model has no layers for {_list(unknown)}")
    halves = [_other_half(name) for name in tensors if _other_half(name) not in tensors]
    if halves or not tensors:
        raise _unusable(where, f"there is no {_list(halves) if halves else 'tensor'}")
    wrong = [
        f"{name.removeprefix(_PREFIX)} is {tensor.dtype} {list(tensor.shape)} and not {list(sizes[name])}"
        for name, tensor in tensors.items()
        if tuple(tensor.shape) != sizes[name] or tensor.dtype not in _DTYPES
    ]
    if wrong:
        raise _unusable(where, _list(wrong))
    broken = [name.removeprefix(_PREFIX) for name, tensor in tensors.items() if not is_finite(tensor)]
    if broken:
        raise EngineError(
            FailureReason.NOT_FINITE,
            f"{where}: values of {_list(broken)} are NaN or infinite, so nothing is published; try a lower"
            " learning_rate",
        )


def _other_half(name: str) -> str:
    """The name of B for A, and of A for B."""
    a, b = ".lora_A.", ".lora_B."
    return name.replace(a, b) if a in name else name.replace(b, a)


def _list(names: list[str]) -> str:
    rest = len(names) - _NAMED
    shown = ", ".join(sorted(names)[:_NAMED])
    return f"{shown} and {rest} more" if rest > 0 else shown


def _unusable(where: str, why: str) -> EngineError:
    return EngineError(
        FailureReason.INVALID_INPUT,
        f"spec.engine.tinker.export: {where} can't be made a PEFT adapter of the base model: {why}. Nothing is"
        " published; check that spec.model.source is the model that the service trains, or leave export out",
    )
