"""The objects of one kind as typed values: the newest of each that a list, a watch or an own write has told."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from claas_kube.index.versions import older
from claas_kube.objects.meta import Manifest

T = TypeVar("T")

Name = tuple[str, str]
"""Namespace and name."""
Decode = Callable[[Manifest, T | None], Awaitable[T]]
"""Makes the value of an object; the second is the value that it had before. Raises ValueError where this release
can't read the object."""
Listener = Callable[[str, str, T | None, T | None], None]
"""Told of namespace, name, and the values before and after a change; None: no object, or one that can't be read."""
DELETIONS_REMEMBERED = 1000
"""Of how many deletions it is known when they were, so that an answer which comes late brings nothing back."""


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

    What is told of an object is taken if it is not older than what is known: an own write's answer counts at once,
    and events from before it change nothing when they come.
    """

    def __init__(self, decode: Decode[T], group: Callable[[T], Iterable[Hashable]] = lambda value: ()) -> None:
        """`group` says under which keys a value can be looked up within its namespace."""
        self._decode = decode
        self._group = group
        self._entries: dict[Name, Entry[T]] = {}
        self._groups: dict[tuple[str, Hashable], dict[str, T]] = {}
        self._deleted: OrderedDict[Name, str] = OrderedDict()
        self._listed: dict[str | None, str] = {}
        self._listeners: list[Listener[T]] = []

    def listen(self, listener: Listener[T]) -> None:
        """Have a listener told of every change from now on."""
        self._listeners.append(listener)

    def entry(self, namespace: str, name: str) -> Entry[T] | None:
        """What is known of the object of that name."""
        return self._entries.get((namespace, name))

    def get(self, namespace: str, name: str) -> T | None:
        """The value of that name; None where there is none, or it can't be read."""
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
        """All that is known in a namespace; None: everywhere."""
        return {at: entry for at, entry in self._entries.items() if namespace in (None, at[0])}

    async def take(self, found: Manifest, *, answer: bool = False) -> None:
        """Remember an object as the server tells of it. `answer`: to a write of our own, and it may come late."""
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
        # Decoding takes a while, in which more may have been told.
        self.note(at, Entry(uid, version, value), answer=answer)

    def note(self, at: Name, entry: Entry[T], *, answer: bool = False) -> None:
        """Remember a value that has been made already."""
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
        """A list of a namespace (None: of all) had these and no others at that resourceVersion."""
        for place, name in self.entries(namespace).keys() - set(names):
            self.drop(place, name, version)
        self._listed[namespace] = version

    def _overtaken(self, at: Name, uid: str, version: str, *, answer: bool) -> bool:
        """Whether this or something newer has been told of an object."""
        known = self._entries.get(at)
        if known is not None and (older(version, known.version) or (uid, version) == (known.uid, known.version)):
            return True
        gone = [self._deleted.get(at)]
        if answer and known is None:
            # It would have been in a list that is newer.
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
