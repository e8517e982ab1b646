"""Tokens and keys from Secrets: checks that their bytes can be sent in a header."""

import re
from collections.abc import Callable
from typing import TypeAlias

Token: TypeAlias = str | Callable[[], str | None] | None
"""A token, or a function that returns the current one, because mounted Secrets can be rotated."""

_OTHER_BYTES = re.compile(rb"[^\x20-\x7e]")


def token_fault(raw: bytes) -> str | None:
    """Why these bytes can't be sent in a header, as text to follow the name of their source; None if they can.
    Leading and trailing white space, which editors and shells add, is ignored.
    """
    token = raw.strip()
    if not token:
        return "is empty"
    other = _OTHER_BYTES.search(token)
    if other is None:
        return None
    advice = f"(byte {other.start() + 1} of {len(token)}): make it of printable ASCII, as openssl rand -hex 32 does"
    if other[0] in b"\r\n":
        return f"has a line break inside {advice}"
    kind = "a control character" if other[0] < b"\x20" or other[0] == b"\x7f" else "bytes that are not ASCII"
    return f"has {kind} {advice}"


def token_text(raw: bytes) -> str:
    """The token in these bytes, which must have no fault."""
    return raw.strip().decode("ascii")
