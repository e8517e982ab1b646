"""LoRA adapters as plain tensors, and as PEFT's folder on disk.

Tensor names are PEFT's published ones (`base_model.model....lora_A.weight`), which vLLM loads too. Reading and
writing needs neither PEFT nor transformers; only creating or attaching an adapter imports them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from claas_trainer.model.errors import model_errors
from claas_trainer.sdpo.errors import AdapterError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_TENSOR_NAME = re.compile(r"base_model\.model\.(.+)\.lora_[AB]\.weight")
# PEFT's name for its first adapter; part of parameter names, never of published ones.
_PEFT_ADAPTER = "default"
# PEFT features that change the meaning of the tensors, with their values when unused.
_UNSUPPORTED = {
    "use_dora": False,
    "use_rslora": False,
    "fan_in_fan_out": False,
    "lora_bias": False,
    "bias": "none",
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "layers_to_transform": None,
    "trainable_token_indices": None,
    "target_parameters": None,
}


@dataclass(frozen=True)
class LoraShape:
    """Shape of an adapter.

    `target_modules`: names or endings of names, or PEFT's regular expression or `all-linear`; empty means all that
    fit the model (`targets`)."""

    rank: int
    alpha: float
    target_modules: tuple[str, ...] | str = ()


@dataclass(frozen=True)
class AdapterWeights:
    """An adapter: its shape, and its tensors by published name."""

    shape: LoraShape
    tensors: Mapping[str, Tensor]


def published_name(parameter_name: str) -> str:
    """The published name of a PEFT parameter, as written to disk."""
    return parameter_name.replace(f".{_PEFT_ADAPTER}.", ".")


def adapted_modules(tensors: Iterable[str]) -> list[str]:
    """Full names of the base model's modules that an adapter's tensors belong to."""
    return sorted({match[1] for name in tensors if (match := _TENSOR_NAME.fullmatch(name))})


def wrap(base: PreTrainedModel, adapter: AdapterWeights) -> PeftModel:
    """Injects a new float32 LoRA adapter into the base model, on the modules for which the given one has tensors.

    Raises:
        AdapterError: the base model has no such modules.
    """
    from peft import LoraConfig, get_peft_model

    modules = adapted_modules(adapter.tensors)
    if not modules:
        raise AdapterError("the adapter has no tensors of LoRA")
    config = LoraConfig(
        r=adapter.shape.rank,
        lora_alpha=adapter.shape.alpha,
        target_modules=modules,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(base, config)
    except ValueError as error:
        raise AdapterError(f"the adapter's modules, such as {modules[0]}: {error}") from error


def new_adapter(model_folder: Path, shape: LoraShape, seed: int) -> AdapterWeights:
    """An adapter that has no effect yet: A uniform as in a linear layer's default, B zero; float32.

    The base model is created from its configuration on the meta device; no weights are read.

    Raises:
        WeightsError: the folder has no usable configuration.
        AdapterError: a wanted layer does not exist or can't have an adapter.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from claas_trainer.model.targets import short_names, target_layers

    with model_errors(model_folder, "model configuration"):
        config = AutoConfig.from_pretrained(model_folder, local_files_only=True)
        with torch.device("meta"):
            base = AutoModelForCausalLM.from_config(config)
    layers = target_layers(base, shape.target_modules)
    sizes: dict[str, tuple[int, int]] = {}
    for name, layer in layers.items():
        sizes[f"base_model.model.{name}.lora_A.weight"] = (shape.rank, layer.in_features)
        sizes[f"base_model.model.{name}.lora_B.weight"] = (layer.out_features, shape.rank)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name in sorted(sizes):
        tensor = torch.zeros(sizes[name])
        if ".lora_A." in name:
            bound = 1 / math.sqrt(tensor.shape[1])
            tensor.uniform_(-bound, bound, generator=generator)
        tensors[name] = tensor
    targets = short_names((name for name, _ in base.named_modules()), layers)
    return AdapterWeights(LoraShape(shape.rank, shape.alpha, targets), tensors)


def write_adapter(folder: Path, adapter: AdapterWeights) -> None:
    """Writes PEFT's two files into an existing folder; the tensors keep their dtype."""
    (folder / CONFIG_FILE).write_bytes(config_file(adapter.shape))
    tensors = {name: adapter.tensors[name].contiguous() for name in sorted(adapter.tensors)}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def config_file(shape: LoraShape) -> bytes:
    """The content of PEFT's configuration file."""
    targets = shape.target_modules
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": shape.rank,
        "lora_alpha": shape.alpha,
        "lora_dropout": 0.0,
        "target_modules": targets if isinstance(targets, str) else list(targets),
        "init_lora_weights": True,
    } | {key: _UNSUPPORTED[key] for key in ("bias", "use_dora", "use_rslora", "fan_in_fan_out", "modules_to_save")}
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def read_adapter(folder: Path, dtype: torch.dtype | None = torch.float32) -> AdapterWeights:
    """Reads an adapter from PEFT's two files, of this or another trainer, with tensors of this dtype. None: as they
    are stored, which maps the file and takes no memory of the process.

    Raises:
        AdapterError: a file is missing or broken, or the adapter uses a feature that the step does not support.
    """
    try:
        config = json.loads((folder / CONFIG_FILE).read_text())
        tensors = load_file(folder / WEIGHTS_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise AdapterError(f"{folder}: no readable adapter there: {error}") from error
    rank, alpha, targets = *plain_scale(config, folder / CONFIG_FILE), config.get("target_modules")
    if isinstance(targets, list) and all(isinstance(target, str) for target in targets):
        targets = tuple(sorted(targets))
    elif not isinstance(targets, str):
        raise AdapterError(f"{folder / CONFIG_FILE}: target_modules must be a list of names, or text")
    shape = LoraShape(rank, alpha, targets)
    return AdapterWeights(shape, {name: tensor.to(dtype or tensor.dtype) for name, tensor in sorted(tensors.items())})


def plain_scale(config: object, where: Path) -> tuple[int, float]:
    """Rank and alpha of PEFT's configuration; `where`: its file, for messages.

    Raises:
        AdapterError: it is not that of a plain LoRA.
    """
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise AdapterError(f"{where}: peft_type must be LORA")
    for key, absent in _UNSUPPORTED.items():
        if config.get(key, absent) not in (absent, None):
            raise AdapterError(f"{where}: {key} is set, and only plain LoRA can be trained: convert the adapter")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float):
        raise AdapterError(f"{where}: r and lora_alpha must be numbers")
    return rank, alpha
