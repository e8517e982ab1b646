"""The API server's message about a refused request, without quotations of users' samples."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pydantic import JsonValue

LONGEST_MESSAGE = 1024
_PRIVATE = re.compile(r"/(secrets|distilljobs)(/|$)")
"""Objects that hold samples: only known phrases of messages about writes to them are passed on."""
_PHRASES = (
    re.compile(
        r"exceeded quota: [-a-z0-9.]+, requested: [-a-z0-9./=,]+, used: [-a-z0-9./=,]+, limited: [-a-z0-9./=,]+"
    ),
    re.compile(r'admission webhook "[-a-zA-Z0-9.]+" denied the request'),
    re.compile(r'failed calling webhook "[-a-zA-Z0-9.]+"'),
    re.compile(r'User "[-a-zA-Z0-9.:@]+" cannot [a-z]+ resource "[-a-z0-9./]+"'),
)
_FIELD = re.compile(r"^[-a-zA-Z0-9_.\[\]/]{1,200}$")


def refusal_message(method: str, path: str, status: dict[str, JsonValue]) -> str:
    """The message of a `metav1.Status`, in one line.

    A Secret may be a trainer's input and a DistillJob may hold samples inline, and a refusal may quote them. Of such
    a refusal only the reason, the fields, and known phrases of quotas, webhooks and RBAC are kept.
    """
    message = status.get("message")
    said = " ".join(message.split()) if isinstance(message, str) else ""
    if method in ("POST", "PUT", "PATCH") and _PRIVATE.search(path):
        reason = status.get("reason")
        said = ": ".join([reason if isinstance(reason, str) else "refused", *_without_values(said, status)])
    return said if len(said) <= LONGEST_MESSAGE else f"{said[: LONGEST_MESSAGE - 4]} ..."


def _without_values(message: str, status: dict[str, JsonValue]) -> Iterator[str]:
    for phrase in _PHRASES:
        found = phrase.search(message)
        if found:
            yield found.group()
    details = status.get("details")
    causes = details.get("causes") if isinstance(details, dict) else None
    for cause in causes if isinstance(causes, list) else []:
        field, why = (cause.get("field"), cause.get("reason")) if isinstance(cause, dict) else (None, None)
        if isinstance(field, str) and isinstance(why, str) and _FIELD.match(field):
            yield f"{field} ({why})"
