"""Base classes of the models: one for Kubernetes resources (camelCase), one for CLaaS payloads (snake_case)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
OBJECT_NAME = rf"^{_LABEL}(\.{_LABEL})*$"
"""Pattern of an object's name in Kubernetes (RFC 1123 subdomain)."""


class ResourceModel(BaseModel):
    """Part of a Kubernetes resource: camelCase on the wire, unknown fields ignored (the API server prunes them)."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        extra="ignore",
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
        ser_json_inf_nan="constants",
    )


class PayloadModel(BaseModel):
    """Part of a CLaaS payload: the snake_case names its users know, unknown fields refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="constants"
    )
