"""Identifiers of what the gateway stores: ordered by time, and valid in names of Kubernetes objects."""

from __future__ import annotations

import secrets
import time
from enum import StrEnum

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's base 32, in lower case."""
_TIME_CHARACTERS = 9
_RANDOM_CHARACTERS = 13


class Prefix(StrEnum):
    """What an identifier names."""

    ROLLOUT = "ro"
    REQUEST = "fr"
    """A request that brought feedback."""
    ITEM = "fb"
    """One item of feedback."""
    BATCH = "bt"


def new_identifier(prefix: Prefix, now_seconds: float | None = None) -> str:
    """A new identifier such as `fb-01k4...`: milliseconds since 1970, then 65 random bits."""
    milliseconds = int((time.time() if now_seconds is None else now_seconds) * 1000)
    return (
        f"{prefix.value}-{_encoded(milliseconds, _TIME_CHARACTERS)}"
        f"{_encoded(secrets.randbits(5 * _RANDOM_CHARACTERS), _RANDOM_CHARACTERS)}"
    )


def _encoded(number: int, length: int) -> str:
    characters = []
    for _ in range(length):
        number, digit = divmod(number, 32)
        characters.append(_ALPHABET[digit])
    return "".join(reversed(characters))
