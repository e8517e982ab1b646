"""Reads the input document."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from claas_contract.input import TrainerInput
from claas_trainer.errors import InputError


def read_input(path: Path) -> TrainerInput:
    """The input document. Raises InputError, which names the field and quotes no value."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: can't be read ({type(error).__name__}); check the mount") from error
    try:
        return TrainerInput.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_input=False, include_context=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "document"
        raise InputError(
            f"{path}: {place}: {first['msg']}; operator and trainer must be of the same release"
        ) from None
