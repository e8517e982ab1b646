"""Sessions of browsers: a signed cookie that stands for a key without holding it.

The cookie has the key's handle, when it ends, and a signature by a secret that is derived from the key. So every
replica can check it, nothing is kept, and it ends when the key is taken out of its Secret.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from claas_gateway.access.keys.secret_keys import ApiKey

COOKIE = "claas_session"
SESSION_SECONDS = 12 * 3600
_VERSION = "v1"


@dataclass(frozen=True, slots=True)
class Session:
    """What a cookie claims; to be believed once `signed_by` was asked."""

    handle: bytes
    ends: int
    signature: bytes

    def signed_by(self, key: ApiKey, now_seconds: float) -> bool:
        """Whether it was made for that key and has not ended. `now_seconds` are seconds since 1970."""
        expected = _signature(key, self.ends)
        return hmac.compare_digest(expected, self.signature) and now_seconds < self.ends


def session_cookie(key: ApiKey, now_seconds: float) -> str:
    """The cookie's value for a key."""
    ends = int(now_seconds) + SESSION_SECONDS
    return f"{_VERSION}.{key.handle.hex()}.{ends}.{_signature(key, ends).hex()}"


def read_session(value: str) -> Session | None:
    """A cookie's value; None if it is not one of ours."""
    parts = value.split(".")
    if len(parts) != 4 or parts[0] != _VERSION or not (parts[2].isascii() and parts[2].isdigit()):
        return None
    try:
        handle, signature = bytes.fromhex(parts[1]), bytes.fromhex(parts[3])
        return Session(handle, int(parts[2]), signature)
    except ValueError:
        return None


def _signature(key: ApiKey, ends: int) -> bytes:
    return hmac.digest(key.session_secret, f"{_VERSION}.{key.handle.hex()}.{ends}".encode(), "sha256")
