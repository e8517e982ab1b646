"""Names in Kubernetes for CLaaS's identifiers."""

from __future__ import annotations

import hashlib
import re

_LONGEST = 50
"""Characters of a name. Names of what an adapter owns are made from it."""
_DIGITS = 10
_PLAIN = re.compile(rf"^[a-z]([-a-z0-9]{{0,{_LONGEST - 2}}}[a-z0-9])?$")
_HASHED = re.compile(rf"-[0-9a-f]{{{_DIGITS}}}$")
_OTHER = re.compile(r"[^a-z0-9]+")


def object_name(lora_id: str) -> str:
    """The LoraAdapter's name for an identifier: the identifier itself if it is such a name, else made from it, with a
    hash of it at the end. No two identifiers have the same name, as far as the hash tells them apart: what looks like
    a name with a hash gets one too.
    """
    if _PLAIN.match(lora_id) and not _HASHED.search(lora_id):
        return lora_id
    digest = hashlib.sha256(lora_id.encode()).hexdigest()[:_DIGITS]
    readable = _OTHER.sub("-", lora_id.lower()).strip("-")
    # A name must begin with a letter where it becomes a DNS label.
    readable = readable if readable[:1].isalpha() else f"a-{readable}"
    return f"{readable[: _LONGEST - _DIGITS - 1].rstrip('-')}-{digest}"
