"""API keys as Secrets hold them: each data entry of a Secret is one key, called by the entry's name."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass

from claas_gateway.access.callers import Caller

SHORTEST_KEY = 16
"""Characters of the shortest key: below it, guessing is an attack that works."""
_OTHER_BYTES = re.compile(rb"[^\x21-\x7e]")


@dataclass(frozen=True, slots=True)
class KeyPlace:
    """A Secret that may hold keys."""

    namespace: str
    secret: str
    adapter: str | None
    """The only adapter that its keys allow; None: the whole namespace."""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.secret}"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key without the key itself: what it is recognised by, and what it allows."""

    digest: bytes
    """SHA-256 of the key."""
    handle: bytes
    """Names the key in a session; tells nothing of the key or its digest."""
    session_secret: bytes
    """Signs sessions, so that they end when the key is taken out of its Secret."""
    place: KeyPlace
    caller: Caller


def digest_of(key: str) -> bytes:
    """What a key is looked up by."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def keys_of(place: KeyPlace, data: Mapping[str, str]) -> tuple[tuple[ApiKey, ...], tuple[str, ...]]:
    """The usable keys in a Secret's `data`, and a sentence for each entry that is not usable. The sentences name
    Secret and entry, never a value. White space around a key, which editors and shells add, is ignored.
    """
    keys, faults = [], []
    for entry in sorted(data):
        try:
            raw = base64.b64decode(data[entry], validate=True).strip()
        except (binascii.Error, ValueError):
            faults.append(f"Secret {place}: entry {entry} is not base64")
            continue
        fault = _fault(raw)
        if fault is None:
            keys.append(_key(place, entry, raw))
        else:
            faults.append(
                f"Secret {place}: entry {entry} {fault}; it is no API key until it is replaced: make one with"
                " `openssl rand -hex 32`"
            )
    return tuple(keys), tuple(faults)


def _fault(raw: bytes) -> str | None:
    if not raw:
        return "is empty"
    if b"\n" in raw or b"\r" in raw:
        return "has a line break inside: each key needs an entry of its own"
    if _OTHER_BYTES.search(raw):
        return "has a space, a control character or bytes that are not ASCII"
    if len(raw) < SHORTEST_KEY:
        return f"is shorter than {SHORTEST_KEY} characters"
    return None


def _key(place: KeyPlace, entry: str, raw: bytes) -> ApiKey:
    return ApiKey(
        digest=hashlib.sha256(raw).digest(),
        handle=hmac.digest(raw, b"claas-gateway: handle", "sha256")[:16],
        session_secret=hmac.digest(raw, b"claas-gateway: session", "sha256"),
        place=place,
        caller=Caller(key_name=entry, namespace=place.namespace, adapter=place.adapter),
    )
