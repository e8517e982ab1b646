"""The values of a base model's `config.json` that the trainer needs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from claas_trainer.errors import not_found
from claas_trainer.model.errors import model_errors
from claas_trainer.samples.reading import ModelLimits
from claas_trainer.sdpo.errors import WeightsError

_UNLIMITED = 2**31


@dataclass(frozen=True)
class ModelConfig:
    """`dtype`: that of the stored weights; None if the file does not say."""

    limits: ModelLimits
    dtype: torch.dtype | None


def read_config(folder: Path) -> ModelConfig:
    """Raises InputError (MODEL_NOT_FOUND)."""
    try:
        document = json.loads((folder / "config.json").read_bytes())
        return _plain(document) or _by_transformers(folder)
    except WeightsError as error:
        raise not_found(f"{error}; is it a causal LM?") from error
    except (OSError, ValueError, AttributeError) as error:
        raise not_found(f"{folder}/config.json: can't be read ({type(error).__name__}); restore the file") from error


def _plain(document: Mapping[str, object]) -> ModelConfig | None:
    """The values in the file; None if it relies on defaults of transformers, which takes seconds to import."""
    text = document.get("text_config", document)
    if not isinstance(text, Mapping):
        return None
    vocabulary, context = text.get("vocab_size"), text.get("max_position_embeddings")
    name = document.get("dtype", document.get("torch_dtype"))
    dtype = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(vocabulary, int) or not isinstance(context, int) or not isinstance(dtype, torch.dtype):
        return None
    return ModelConfig(ModelLimits(vocabulary, context), dtype)


def _by_transformers(folder: Path) -> ModelConfig:
    from transformers import AutoConfig

    with model_errors(folder, "config.json"):
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        text = config.get_text_config()
        context = int(getattr(text, "max_position_embeddings", 0) or _UNLIMITED)
        return ModelConfig(ModelLimits(int(text.vocab_size), context), config.dtype)
