"""The list of models, as the caller sees them."""

from __future__ import annotations

from collections import Counter

import msgspec
from pydantic import JsonValue

from claas_gateway.access.callers import Caller
from claas_gateway.directory.interface import Directory

_encode = msgspec.json.Encoder().encode


def list_models(directory: Directory, caller: Caller) -> bytes:
    """Adapters by their served names, or by their identifiers where several have the same one; and base models."""
    adapters = directory.adapters(caller.namespace, caller.adapter)
    served = Counter(each.served_name for each in adapters)
    cards: list[dict[str, JsonValue]] = [_card(each) for each in _bases(directory, caller)]
    for each in adapters:
        name = each.served_name if served[each.served_name] == 1 else each.lora_id
        created = each.found.metadata.creation_timestamp
        cards.append(_card(name, parent=each.base_model, created=int(created.timestamp()) if created else 0))
    return _encode({"object": "list", "data": cards})


def _bases(directory: Directory, caller: Caller) -> list[str]:
    return [] if caller.adapter is not None else list(directory.base_models(caller.namespace))


def _card(name: str, *, parent: str | None = None, created: int = 0) -> dict[str, JsonValue]:
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "claas",
        "root": parent or name,
        "parent": parent,
    }
