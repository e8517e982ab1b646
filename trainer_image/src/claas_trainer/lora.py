"""LoRA adapters as plain tensors, and as PEFT's folder on disk.

Tensor names are PEFT's published ones (`base_model.model....lora_A.weight`), which vLLM loads too. To read and write
them needs neither PEFT nor transformers, which are imported by what makes or attaches an adapter.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from claas_trainer.model_errors import model_errors
from claas_trainer.step_errors import AdapterError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
ALL_LINEAR = "all-linear"
# PEFT's name for its first adapter; it stands in parameter names, never in published ones.
_PEFT_ADAPTER = "default"
# Features of PEFT whose presence changes what the tensors mean; their values when absent.
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
    """What an adapter looks like. No target modules means every linear layer but the head."""

    rank: int
    alpha: float
    target_modules: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoraAdapter:
    """An adapter: its shape, and its tensors by their published names."""

    shape: LoraShape
    tensors: Mapping[str, Tensor]


def published_name(parameter_name: str) -> str:
    """A PEFT parameter's name as it is written to disk."""
    return parameter_name.replace(f".{_PEFT_ADAPTER}.", ".")


def wrap(base: PreTrainedModel, shape: LoraShape) -> PeftModel:
    """The base model with a new LoRA adapter injected, its parameters float32.

    Raises:
        AdapterError: the base has no module of these names.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=shape.rank,
        lora_alpha=shape.alpha,
        target_modules=list(shape.target_modules) or ALL_LINEAR,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(base, config)
    except ValueError as error:
        names = ", ".join(shape.target_modules) or ALL_LINEAR
        raise AdapterError(f"target modules {names}: {error}") from error


def new_adapter(model_folder: Path, shape: LoraShape, seed: int) -> LoraAdapter:
    """An adapter that changes nothing yet: A uniform as in a linear layer's default, B zero; float32.

    The base model is made of its configuration alone, on the meta device: no weights are read.

    Raises:
        WeightsError: the folder has no usable configuration.
        AdapterError: no module has these names.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    with model_errors(model_folder, "model configuration"):
        config = AutoConfig.from_pretrained(model_folder, local_files_only=True)
        with torch.device("meta"):
            base = AutoModelForCausalLM.from_config(config)
    modules = [name for name, _ in base.named_modules()]
    peft = wrap(base, shape)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    shapes = {published_name(name): p.shape for name, p in peft.named_parameters() if p.requires_grad}
    for name in sorted(shapes):
        tensor = torch.zeros(shapes[name])
        if ".lora_A." in name:
            bound = 1 / math.sqrt(tensor.shape[1])
            tensor.uniform_(-bound, bound, generator=generator)
        tensors[name] = tensor
    targets = _short_names(modules, peft.peft_config[_PEFT_ADAPTER].target_modules)
    return LoraAdapter(LoraShape(shape.rank, shape.alpha, targets), tensors)


def _short_names(modules: Iterable[str], targets: Iterable[str]) -> tuple[str, ...]:
    """The targets by their last names, where these mean the same modules; by their full names otherwise."""
    full = set(targets)
    short = {target.rpartition(".")[2] for target in full}
    meant = {name for name in modules if name.rpartition(".")[2] in short}
    return tuple(sorted(short if meant == full else full))


def write_adapter(folder: Path, adapter: LoraAdapter) -> None:
    """Writes PEFT's two files into an existing folder; tensors keep their dtype."""
    (folder / CONFIG_FILE).write_bytes(config_file(adapter.shape))
    tensors = {name: adapter.tensors[name].contiguous() for name in sorted(adapter.tensors)}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def config_file(shape: LoraShape) -> bytes:
    """The content of PEFT's configuration file."""
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": shape.rank,
        "lora_alpha": shape.alpha,
        "lora_dropout": 0.0,
        "target_modules": list(shape.target_modules) or ALL_LINEAR,
        "init_lora_weights": True,
    } | {key: _UNSUPPORTED[key] for key in ("bias", "use_dora", "use_rslora", "fan_in_fan_out", "modules_to_save")}
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def read_adapter(folder: Path) -> LoraAdapter:
    """An adapter from PEFT's two files, ours or another trainer's; tensors come as float32.

    Raises:
        AdapterError: a file is missing or broken, or the adapter uses a feature that the step has not.
    """
    try:
        config = json.loads((folder / CONFIG_FILE).read_text())
        tensors = load_file(folder / WEIGHTS_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise AdapterError(f"{folder}: no readable adapter there: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise AdapterError(f"{folder / CONFIG_FILE}: peft_type must be LORA")
    for key, absent in _UNSUPPORTED.items():
        if config.get(key, absent) not in (absent, None):
            raise AdapterError(
                f"{folder / CONFIG_FILE}: {key} is set, and only plain LoRA can be trained: convert the adapter"
            )
    rank, alpha, targets = config.get("r"), config.get("lora_alpha"), config.get("target_modules")
    if not isinstance(rank, int) or not isinstance(alpha, int | float):
        raise AdapterError(f"{folder / CONFIG_FILE}: r and lora_alpha must be numbers")
    if targets == ALL_LINEAR:
        targets = []
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise AdapterError(f"{folder / CONFIG_FILE}: target_modules must be a list of names or {ALL_LINEAR}")
    shape = LoraShape(rank, alpha, tuple(sorted(targets)))
    return LoraAdapter(shape, {name: tensor.float() for name, tensor in sorted(tensors.items())})
