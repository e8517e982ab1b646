"""The base class of the documents between operator and trainer."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class ContractModel(BaseModel):
    """Part of a document between operator and trainer: snake_case, unknown fields refused, values never in error
    messages."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True)
