"""The names by which clients ask for adapters, and what a name stands for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from claas_kube.objects.resources import AdapterObject

_OTHER = re.compile(r"[^A-Za-z0-9._-]+")
_ALIASES = ("-init", "-latest")
"""Suffixes of an identifier in CLaaS; all stand for the version in service."""

Place = tuple[str, str]
"""Namespace and name of a LoraAdapter."""


class Rank(IntEnum):
    """How well a name fits an adapter; the best fit wins."""

    SERVED = 0
    NAME = 1
    IDENTIFIER = 2
    ALIAS = 3
    DASHED = 4


def dashed(identifier: str) -> str:
    """An identifier as a model name, as CLaaS makes it: each run of characters outside `[A-Za-z0-9._-]` is a dash."""
    return _OTHER.sub("-", identifier)


def names_of(adapter: AdapterObject) -> dict[str, Rank]:
    """All names of an adapter, each with its best rank."""
    ranked = [
        (adapter.served_name, Rank.SERVED),
        (adapter.metadata.name, Rank.NAME),
        (adapter.lora_id, Rank.IDENTIFIER),
        *((adapter.lora_id + suffix, Rank.ALIAS) for suffix in _ALIASES),
        *((dashed(adapter.lora_id) + suffix, Rank.DASHED) for suffix in ("", *_ALIASES)),
    ]
    names: dict[str, Rank] = {}
    for name, rank in ranked:
        names.setdefault(name, rank)
    return names


@dataclass(frozen=True, slots=True)
class Found:
    """An adapter that has a name, and how well it fits."""

    place: Place
    rank: Rank


class NameTable:
    """The names of all adapters."""

    def __init__(self) -> None:
        self._places: dict[str, dict[Place, Rank]] = {}

    def change(self, place: Place, before: AdapterObject | None, after: AdapterObject | None) -> None:
        """An adapter appeared, changed or vanished."""
        for name in names_of(before) if before is not None else ():
            places = self._places.get(name, {})
            places.pop(place, None)
            if not places:
                self._places.pop(name, None)
        for name, rank in names_of(after).items() if after is not None else ():
            self._places.setdefault(name, {})[place] = rank

    def find(self, name: str, namespace: str | None, adapter: str | None) -> list[Place]:
        """The adapters that a name fits best, of those that the caller sees; several if it does not tell them
        apart."""
        seen = [
            Found(place, rank)
            for place, rank in self._places.get(name, {}).items()
            if namespace in (None, place[0]) and adapter in (None, place[1])
        ]
        return best(seen)


def best(found: Iterable[Found]) -> list[Place]:
    """The places with the best rank, in order."""
    ranked = sorted(found, key=lambda each: (each.rank, each.place))
    return [each.place for each in ranked if each.rank == ranked[0].rank]
