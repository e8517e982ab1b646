"""Bodies of requests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from claas_inference_proxy.errors import RefusalError, malformed


class Body(BaseModel):
    """A body, or a part of one. Unknown fields are ignored, as vLLM does."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True, protected_namespaces=())


B = TypeVar("B", bound=Body)


def read_document(body: bytes) -> dict[str, JsonValue]:
    """The JSON object of a body. Raises RefusalError."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise RefusalError("the body is not JSON", param="body") from None
    if not isinstance(document, dict):
        raise RefusalError("the body must be a JSON object", param="body")
    return document


def read(kind: type[B], document: Mapping[str, JsonValue]) -> B:
    """A body of that kind. Raises RefusalError."""
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise malformed(error) from None
