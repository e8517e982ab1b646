"""Bodies of the routes below /v1/lora, as CLaaS's clients know them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from claas_crds.v1alpha1.training import LORA_ID_PATTERN

LONGEST_ID = 190
"""Longest identifier, so that it fits into a served name with the suffix of an alias."""


class LoraInitRequest(BaseModel):
    """The adapter that is asked for. Fields that are not named here are ignored."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    lora_id: str = Field(pattern=LORA_ID_PATTERN, max_length=LONGEST_ID, examples=["acme/tone"])
    """The identifier."""
    base_model: str | None = Field(default=None, max_length=253)
    """The base model, by its name in vLLM or on the hub; the template's when left out, and no other one."""
    lora_r: int = Field(default=32, ge=4, le=128)
    """Rank; vLLM's `--max-lora-rank` must be at least this."""
    lora_alpha: int = Field(default=64, ge=8, le=256)
    """Scaling: the adapter's output is multiplied by alpha / rank."""
    target_modules: list[Annotated[str, Field(min_length=1, max_length=253)]] | None = Field(
        default=None, min_length=1, max_length=256
    )
    """Layers that get an adapter; the template's when left out."""


class LoraInitAnswer(BaseModel):
    """The adapter that was made."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    lora_id: str = Field(examples=["acme/tone-init"])
    """An identifier that all other routes accept, as they do the one that was sent."""


class LoraList(BaseModel):
    """Adapters."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    loras: list[str] = Field(examples=[["acme/tone-init", "acme/tone-latest"]])
    """Their identifiers with the suffixes that CLaaS gives them, sorted."""


class LoraDeletion(BaseModel):
    """Whether an adapter was deleted."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    deleted: bool
    """False: there was none."""
