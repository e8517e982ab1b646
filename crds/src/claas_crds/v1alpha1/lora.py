"""The shape of a LoRA adapter."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field, WithJsonSchema

from claas_crds.base import ResourceModel

TargetModules: TypeAlias = Annotated[
    Annotated[str, Field(min_length=1, max_length=1024)]
    | Annotated[list[Annotated[str, Field(min_length=1, max_length=253)]], Field(min_length=1, max_length=256)],
    WithJsonSchema(
        {
            # Text or a list. No type of a structural schema allows both; without a type each bound applies to values
            # of its own kind, and these exclude numbers.
            "x-kubernetes-preserve-unknown-fields": True,
            "minLength": 1,
            "maxLength": 1024,
            "minItems": 1,
            "maxItems": 256,
            "items": {"type": "string", "minLength": 1, "maxLength": 253},
            "maxProperties": 0,
            "minimum": 1,
            "maximum": 0,
            "not": {"enum": [True, False, {}]},
        }
    ),
]
"""Layers by name, or by a pattern (PEFT's `target_modules`)."""


class LoraSpec(ResourceModel):
    """Shape of the adapter."""

    rank: int = Field(default=32, ge=4, le=128)
    """Rank r; vLLM's `--max-lora-rank` must be at least this."""
    alpha: int = Field(default=64, ge=1, le=256)
    """Scaling: the adapter's output is multiplied by alpha / rank."""
    target_modules: TargetModules | None = None
    """Linear layers of the language model that get an adapter, as in PEFT: a list of names (`[q_proj, v_proj]`) or of
    endings of dotted names, a regular expression that matches whole names, or `all-linear`. By default all linear
    layers that fit. Embeddings, head and experts are not supported."""
