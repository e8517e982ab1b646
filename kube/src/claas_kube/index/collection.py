"""The objects of one kind as typed values: the newest state of each from a list, a watch or an own write."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from claas_kube.index.versions import older
from claas_kube.objects.meta import Manifest

log = logging.getLogger(__name__)

T = TypeVar("T")

Name = tuple[str, str]
"""Namespace and name."""
Decode = Callable[[Manifest, T | None], Awaitable[T]]
"""Decodes an object; the second argument is its previous value. Raises ValueError if this release can't read the
object."""
Listener = Callable[[str, str, T | None, T | None], None]
"""Called with namespace, name, and the values before and after a change; None: no object, or an unreadable one."""
DELETIONS_REMEMBERED = 1000
"""Number of deletions to remember, so that a late answer does not bring a deleted object back."""


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    """One object."""

    uid: str
    version: str
    """Its resourceVersion."""
    value: T | None
    """None: this release can't read it."""


class Collection(Generic[T]):
    """The objects of one kind.

    A report about an object is accepted unless it is older than the known state: the answer to an own write counts at
    once, and earlier events that arrive later change nothing.
    """

    def __init__(self, decode: Decode[T], group: Callable[[T], Iterable[Hashable]] = lambda value: ()) -> None:
        """`group` returns the keys under which a value can be looked up within its namespace."""
        self._decode = decode
        self._group = group
        self._entries: dict[Name, Entry[T]] = {}
        self._groups: dict[tuple[str, Hashable], dict[str, T]] = {}
        self._deleted: OrderedDict[Name, str] = OrderedDict()
        self._listed: dict[str | None, str] = {}
        self._listeners: list[Listener[T]] = []

    def listen(self, listener: Listener[T]) -> None:
        """Call a listener for every later change."""
        self._listeners.append(listener)

    def entry(self, namespace: str, name: str) -> Entry[T] | None:
        """The entry of the object with that name."""
        return self._entries.get((namespace, name))

    def get(self, namespace: str, name: str) -> T | None:
        """The value with that name; None if there is none or it is unreadable."""
        entry = self._entries.get((namespace, name))
        return entry.value if entry is not None else None

    def within(self, namespace: str | None) -> Iterator[T]:
        """The values in a namespace; None: all."""
        for (place, _), entry in self._entries.items():
            if entry.value is not None and namespace in (None, place):
                yield entry.value

    def grouped(self, namespace: str, key: Hashable) -> list[T]:
        """The values in a namespace that are grouped under a key."""
        return list(self._groups.get((namespace, key), {}).values())

    def entries(self, namespace: str | None) -> dict[Name, Entry[T]]:
        """All entries of a namespace; None: of all."""
        return {at: entry for at, entry in self._entries.items() if namespace in (None, at[0])}

    async def take(self, found: Manifest, *, answer: bool = False) -> None:
        """Store an object from the server. `answer`: it is the answer to an own write and may be late."""
        metadata = cast(Manifest, found["metadata"])
        at = (str(metadata.get("namespace", "")), str(metadata["name"]))
        uid, version = str(metadata.get("uid", "")), str(metadata.get("resourceVersion", ""))
        if self._overtaken(at, uid, version, answer=answer):
            return
        known = self._entries.get(at)
        before = known.value if known is not None and known.uid == uid else None
        try:
            value = await self._decode(found, before)
        except ValueError:
            value = None
        except Exception as error:  # noqa: BLE001  (one object, whatever is in it, must not end the watch)
            log.error("%s/%s can't be decoded: %s", *at, type(error).__name__)
            value = None
        # Decoding takes time, during which a newer report may have arrived.
        self.note(at, Entry(uid, version, value), answer=answer)

    def note(self, at: Name, entry: Entry[T], *, answer: bool = False) -> None:
        """Store a decoded value."""
        if not self._overtaken(at, entry.uid, entry.version, answer=answer):
            self._put(at, entry)

    def drop(self, namespace: str, name: str, version: str) -> None:
        """An object was deleted; `version` is the resourceVersion of that, or of a list in which it no longer is."""
        at = (namespace, name)
        known = self._entries.get(at)
        if known is not None and older(version, known.version):
            return
        self._deleted[at] = version
        self._deleted.move_to_end(at)
        while len(self._deleted) > DELETIONS_REMEMBERED:
            self._deleted.popitem(last=False)
        if known is not None:
            self._put(at, None)

    def keep(self, namespace: str | None, names: Iterable[Name], version: str) -> None:
        """Store a complete list of a namespace (None: of all) at that resourceVersion."""
        for place, name in self.entries(namespace).keys() - set(names):
            self.drop(place, name, version)
        self._listed[namespace] = version

    def _overtaken(self, at: Name, uid: str, version: str, *, answer: bool) -> bool:
        """Whether the known state of an object is this one or newer."""
        known = self._entries.get(at)
        if known is not None and (older(version, known.version) or (uid, version) == (known.uid, known.version)):
            return True
        gone = [self._deleted.get(at)]
        if answer and known is None:
            # A newer list would contain it.
            gone += [self._listed.get(at[0]), self._listed.get(None)]
        return any(since is not None and older(version, since) for since in gone)

    def _put(self, at: Name, entry: Entry[T] | None) -> None:
        namespace, name = at
        known = self._entries.pop(at, None)
        before, after = known.value if known else None, entry.value if entry else None
        for key in self._group(before) if before is not None else ():
            group = self._groups[namespace, key]
            del group[name]
            if not group:
                del self._groups[namespace, key]
        if entry is not None:
            self._entries[at] = entry
        if after is not None:
            for key in self._group(after):
                self._groups.setdefault((namespace, key), {})[name] = after
        for listener in self._listeners:
            listener(namespace, name, before, after)
