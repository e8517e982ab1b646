"""Repositories of the hub: which of their files the trainer reads, and what can go wrong there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from claas_contract.outcome import FailureReason
from claas_trainer.errors import InputError, not_found
from claas_trainer.store.errors import is_storage_fault, store_error

CONFIGURATION_FILES = ("*.json", "*.jinja", "*.txt", "*.model")
"""Patterns of names: configuration and tokenizer."""
MODEL_FILES = (*CONFIGURATION_FILES, "*.safetensors")
"""Patterns of names: all that the trainer reads."""
_REFUSALS = range(400, 500)


@contextmanager
def hub_errors(name: str, where: Path) -> Iterator[None]:
    """Context manager around calls of the hub's client for a repository, whose files go to folder `where`. Raises
    TrainerError for all that can go wrong there."""
    # The hub's client uses httpx2 and raises that library's errors.
    from httpx2 import HTTPError
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        yield
    except HFValidationError as error:
        raise not_found(f"model.repository: {name} can't be downloaded; it is not a repository name") from error
    except (HTTPError, LocalEntryNotFoundError, OSError) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code in _REFUSALS:
            raise not_found(
                f"model.repository: {name} can't be downloaded (HTTP {error.response.status_code}); check name, "
                "revision and token"
            ) from error
        if isinstance(error, OSError) and is_storage_fault(error):
            raise store_error(error, where) from error
        raise InputError(
            f"model.repository: {name} can't be downloaded ({type(error).__name__}) and is not in the cache; check"
            " that the pod can reach the hub",
            FailureReason.HUB_UNREACHABLE,
        ) from error
