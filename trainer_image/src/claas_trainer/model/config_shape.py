"""The shape of a base model from its `config.json`, for the trainer's own forward.

The file is read as transformers reads it, without importing transformers' model classes. Anything that transformers
might read differently raises UnsupportedModelError and is left to the generic forward, which uses transformers
itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from claas_contract.outcome import FailureReason
from claas_trainer.errors import InputError
from claas_trainer.model.rope_settings import read_rope
from claas_trainer.model.shape import ModelShape
from claas_trainer.sdpo.errors import UnsupportedModelError


@dataclass(frozen=True)
class _Family:
    """transformers' defaults for values that the file leaves out. `kv_heads` None: as many as query heads. `head_dim`
    None: hidden / heads. `no_head_dim` and `no_kv_heads`: whether `null` means the same."""

    context: int
    kv_heads: int | None
    head_dim: int | None
    window: int | None
    no_kv_heads: bool = True
    no_head_dim: bool = False


_FAMILIES = {
    "qwen3": _Family(context=32768, kv_heads=32, head_dim=128, window=4096),
    "qwen2": _Family(context=32768, kv_heads=32, head_dim=None, window=4096),
    "llama": _Family(context=2048, kv_heads=None, head_dim=None, window=None, no_head_dim=True),
    "mistral": _Family(context=131072, kv_heads=8, head_dim=None, window=4096, no_kv_heads=False, no_head_dim=True),
}
_QWEN = ("qwen3", "qwen2")
_ABSENT = object()


def read_shape(folder: Path) -> ModelShape:
    """The model's shape.

    Raises:
        UnsupportedModelError: the trainer's own forward can't compute it. InputError: there is no readable
        configuration.
    """
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{folder}/config.json: can't be read", FailureReason.MODEL_NOT_FOUND) from error
    if not isinstance(config, Mapping):
        raise InputError(f"{folder}/config.json: is no JSON object", FailureReason.MODEL_NOT_FOUND)
    return shape_of(config)


def shape_of(config: Mapping[str, object]) -> ModelShape:
    """The shape that a `config.json` describes. Raises UnsupportedModelError like `read_shape`."""
    name = config.get("model_type")
    family = _FAMILIES.get(name) if isinstance(name, str) else None
    if family is None or not isinstance(name, str):
        raise UnsupportedModelError(f"model_type is {name}")
    for key, wanted in (("hidden_act", "silu"), ("mlp_bias", False)):
        if config.get(key, wanted) != wanted:
            raise UnsupportedModelError(f"{key} is set")
    if config.get("quantization_config") is not None:
        raise UnsupportedModelError("quantization_config is set")
    if name != "qwen2" and config.get("attention_bias", False) is not False:
        raise UnsupportedModelError("attention_bias is set")
    hidden, heads = _whole(config, "hidden_size"), _whole(config, "num_attention_heads")
    layers = _whole(config, "num_hidden_layers")
    kv_heads = _or_default(config, "num_key_value_heads", family.kv_heads or heads, heads, family.no_kv_heads)
    head_dim = _or_default(
        config, "head_dim", family.head_dim or hidden // heads, hidden // heads, family.no_head_dim
    )
    if heads % kv_heads or head_dim % 2:
        raise UnsupportedModelError(f"{heads} heads of {head_dim}, and {kv_heads} for keys, do not go together")
    context = _whole(config, "max_position_embeddings", family.context)
    return ModelShape(
        family=name,
        vocabulary=_whole(config, "vocab_size"),
        hidden=hidden,
        intermediate=_whole(config, "intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        rope=read_rope(config, head_dim, context),
        norm_epsilon=_epsilon(config),
        qk_norm=name == "qwen3",
        qkv_bias=name == "qwen2",
        tied=_flag(config, "tie_word_embeddings"),
        sliding_window=_sliding_window(config, name, family, layers),
    )


def _sliding_window(config: Mapping[str, object], name: str, family: _Family, layers: int) -> int | None:
    window = config.get("sliding_window", family.window)
    if name in _QWEN:
        used = _flag(config, "use_sliding_window")
        kinds = config.get("layer_types")
        if kinds is None:
            full = min(_whole(config, "max_window_layers", 28, least=0), layers)
            sliding = layers - full if used and window is not None else 0
            kinds = ["full_attention"] * (layers - sliding) + ["sliding_attention"] * sliding
        if not isinstance(kinds, list) or len(kinds) != layers or any(kind != kinds[0] for kind in kinds):
            raise UnsupportedModelError("only some layers have a sliding window")
        if kinds[0] == "full_attention":
            return None
        if kinds[0] != "sliding_attention" or not used:
            raise UnsupportedModelError(f"layer_types has {kinds[0]}")
    elif "layer_types" in config:
        # transformers takes a Mistral with layer types for a Ministral.
        raise UnsupportedModelError("layer_types is set")
    if window is not None and (not isinstance(window, int) or isinstance(window, bool) or window < 1):
        raise UnsupportedModelError("sliding_window is no whole number")
    return window


def _or_default(config: Mapping[str, object], name: str, absent: int, null: int, nullable: bool) -> int:
    """A whole number, or the default if it is absent or, where that is allowed, null."""
    if nullable and config.get(name, _ABSENT) is None:
        return null
    return _whole(config, name, absent)


def _whole(config: Mapping[str, object], name: str, absent: int | None = None, least: int = 1) -> int:
    value = config.get(name, absent)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UnsupportedModelError(f"{name} is missing or no whole number from {least} on")
    return value


def _flag(config: Mapping[str, object], name: str) -> bool:
    value = config.get(name, False)
    if not isinstance(value, bool):
        raise UnsupportedModelError(f"{name} is neither true nor false")
    return value


def _epsilon(config: Mapping[str, object]) -> float:
    value = config.get("rms_norm_eps", 1e-6)
    if not isinstance(value, float):
        raise UnsupportedModelError("rms_norm_eps is no number")
    return value
