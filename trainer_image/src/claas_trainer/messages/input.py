"""The input document, wherever it comes from."""

from __future__ import annotations

from pydantic import ValidationError

from claas_contract.input import TrainerInput
from claas_trainer.errors import InputError


def parse_input(data: bytes, source: str) -> TrainerInput:
    """The input document; `source` says in errors where it came from. Raises InputError, which names the field and
    quotes no value."""
    try:
        return TrainerInput.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_input=False, include_context=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "document"
        raise InputError(
            f"{source}: {place}: {first['msg']}; operator and trainer must be of the same release"
        ) from None
