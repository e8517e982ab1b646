"""Tokens and keys on their way into a request's header: which bytes of a Secret can be one."""

import re
from collections.abc import Callable
from typing import TypeAlias

Token: TypeAlias = str | Callable[[], str | None] | None
"""A token, or who knows the one of the moment: mounted Secrets are rotated under a running process."""

_OTHER_BYTES = re.compile(rb"[^\x20-\x7e]")


def token_fault(raw: bytes) -> str | None:
    """Why these bytes can't be sent as a header, to follow the place they are from; None when they can.

    Blanks and line breaks at the ends don't count: editors and shells leave them.
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
    """The token that these bytes hold; they must have no fault."""
    return raw.strip().decode("ascii")
