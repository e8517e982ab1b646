"""Whatever order events, lists and answers to own writes come in, a collection ends as the server has it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from claas_kube.index.collection import Collection
from claas_kube.index.versions import older
from claas_kube.objects.meta import Manifest

NAMESPACE = "team"
NAMES = ("a", "b", "c")


async def label_of(found: Manifest, before: str | None) -> str:
    await asyncio.sleep(0)
    label = found["spec"]
    if not isinstance(label, str):
        raise ValueError("it can't be read")
    return label


def collection() -> Collection[str]:
    return Collection(label_of, lambda label: [label[0]])


def object_of(name: str, version: int, spec: str | int, uid: str = "uid") -> Manifest:
    metadata: Manifest = {"name": name, "namespace": NAMESPACE, "uid": uid, "resourceVersion": str(version)}
    return {"metadata": metadata, "spec": spec}


@pytest.mark.parametrize(
    ("version", "than", "is_older"),
    [
        ("9", "10", True),
        ("10", "9", False),
        ("7", "7", False),
        ("x7", "9", False),
        ("0", "9", False),
        ("", "9", False),
    ],
)
def test_versions_are_ordered_as_numbers_and_not_at_all_when_they_are_none(
    version: str, than: str, is_older: bool
) -> None:
    assert older(version, than) is is_older


@dataclass
class Server:
    """One kind of object, the log of what became of them, and answers that are still on their way."""

    version: int = 7
    """As of its first write, so that versions of one and of two digits come."""
    objects: dict[str, Manifest] = field(default_factory=dict)
    log: list[tuple[int, bool, Manifest]] = field(default_factory=list)
    answers: list[Manifest] = field(default_factory=list)

    def write(self, name: str, *, own: bool) -> None:
        self.version += 1
        known = self.objects.get(name)
        uid = known["metadata"]["uid"] if known else f"uid-{self.version}"  # type: ignore[index, call-overload]
        self.objects[name] = object_of(name, self.version, f"{name}{self.version}", str(uid))
        self.log.append((self.version, False, self.objects[name]))
        if own:
            self.answers.append(self.objects[name])

    def delete(self, name: str) -> None:
        if name in self.objects:
            self.version += 1
            gone = object_of(name, self.version, "gone")
            del self.objects[name]
            self.log.append((self.version, True, gone))


@dataclass
class Reading:
    """The index's side: where its stream is, and the list that is being read, if one is."""

    server: Server
    index: Collection[str]
    at: int = 0
    """The number of log entries that the stream has told."""
    pages: list[Manifest] | None = None
    names: list[tuple[str, str]] = field(default_factory=list)
    listed_at: tuple[int, int] = (0, 0)
    """The list's version, and the place in the log that it stands for."""
    newest: dict[str, tuple[int, bool]] = field(default_factory=dict)
    """The newest that was told of each name: which version, and whether it was there."""

    def told(self, name: str, version: int, there: bool) -> None:
        self.newest[name] = max(self.newest.get(name, (0, False)), (version, there))

    async def event(self) -> None:
        if self.pages is None and self.at < len(self.server.log):
            version, deleted, found = self.server.log[self.at]
            self.at += 1
            name = str(found["metadata"]["name"])  # type: ignore[index, call-overload]
            self.told(name, version, not deleted)
            if deleted:
                self.index.drop(NAMESPACE, name, str(version))
            else:
                await self.index.take(found)

    def again(self) -> None:
        self.at = max(self.listed_at[1], self.at - 2)

    def start_list(self) -> None:
        self.pages = list(self.server.objects.values())
        self.names = [(NAMESPACE, name) for name in self.server.objects]
        self.listed_at = (self.server.version, len(self.server.log))

    async def page(self) -> None:
        if self.pages:
            found = self.pages.pop()
            self.told(*_known_as(found), True)
            await self.index.take(found)
        elif self.pages is not None:
            for name in set(NAMES) - {name for _, name in self.names}:
                self.told(name, self.listed_at[0], False)
            self.index.keep(NAMESPACE, self.names, str(self.listed_at[0]))
            self.pages, self.at = None, self.listed_at[1]

    async def answer(self, which: int) -> None:
        if self.server.answers:
            found = self.server.answers.pop(which % len(self.server.answers))
            self.told(*_known_as(found), True)
            await self.index.take(found, answer=True)

    def check(self) -> None:
        """What is known of each object is the newest that was told, never anything before it."""
        known = {name: int(entry.version) for (_, name), entry in self.index.entries(None).items()}
        assert known == {name: version for name, (version, there) in self.newest.items() if there}


def _known_as(found: Manifest) -> tuple[str, int]:
    metadata = found["metadata"]
    assert isinstance(metadata, dict)
    return str(metadata["name"]), int(str(metadata["resourceVersion"]))


STEPS = st.one_of(
    st.tuples(st.sampled_from(["write", "own", "delete"]), st.sampled_from(NAMES)),
    st.tuples(st.sampled_from(["event", "event", "again", "list", "page", "answer"]), st.integers(0, 3)),
)


async def play(steps: Iterable[tuple[str, str | int]]) -> None:
    server = Server()
    reading = Reading(server, collection())
    for what, which in steps:
        match what, which:
            case (("write" | "own"), str()):
                server.write(which, own=what == "own")
            case "delete", str():
                server.delete(which)
            case "event", _:
                await reading.event()
            case "again", _:
                reading.again()
            case "list", _:
                reading.start_list()
            case "page", _:
                await reading.page()
            case "answer", int():
                await reading.answer(which)
        reading.check()
    while server.answers:
        await reading.answer(0)
    while reading.pages is not None:
        await reading.page()
    while reading.at < len(server.log):
        await reading.event()
    expected = {(NAMESPACE, name): found["spec"] for name, found in server.objects.items()}
    assert {at: entry.value for at, entry in reading.index.entries(None).items()} == expected
    for name in NAMES:
        assert reading.index.grouped(NAMESPACE, name) == (
            [expected[NAMESPACE, name]] if name in server.objects else []
        )


@given(st.lists(STEPS, max_size=40))
@example([("own", "a"), ("delete", "a"), ("list", 0), ("page", 0), ("answer", 0)])
@example([("write", "a"), ("own", "a"), ("event", 0), ("answer", 0), ("again", 0), ("event", 0)])
@example([("own", "a"), ("list", 0), ("own", "a"), ("answer", 1), ("page", 0), ("page", 0), ("answer", 0)])
def test_in_any_order_of_events_lists_and_own_writes_it_ends_as_the_servers_state(
    steps: list[tuple[str, str | int]],
) -> None:
    asyncio.run(play(steps))


async def test_an_own_write_counts_at_once_and_events_from_before_it_change_nothing() -> None:
    index = collection()
    await index.take(object_of("a", 5, "five"))
    await index.take(object_of("a", 9, "nine"), answer=True)
    await index.take(object_of("a", 7, "seven"))
    assert index.get(NAMESPACE, "a") == "nine"


async def test_an_answer_that_comes_after_the_deletion_brings_nothing_back() -> None:
    index = collection()
    index.drop(NAMESPACE, "a", "9")
    await index.take(object_of("a", 8, "eight"), answer=True)
    index.keep(NAMESPACE, [], "20")
    await index.take(object_of("b", 19, "nineteen"), answer=True)
    assert not index.entries(None)


async def test_two_writes_whose_decoding_overlaps_end_with_the_newer_one() -> None:
    index = collection()
    newer, earlier = object_of("a", 9, "nine"), object_of("a", 8, "eight")
    await asyncio.gather(index.take(earlier), index.take(newer))
    assert index.get(NAMESPACE, "a") == "nine"
    await asyncio.gather(index.take(object_of("b", 9, "nine")), index.take(object_of("b", 8, "eight")))
    assert index.get(NAMESPACE, "b") == "nine"


async def test_an_object_that_can_not_be_read_is_known_without_a_value() -> None:
    index = collection()
    await index.take(object_of("a", 5, "five"))
    await index.take(object_of("a", 6, 6))
    entry = index.entry(NAMESPACE, "a")
    assert entry is not None
    assert (entry.version, entry.value) == ("6", None)
    assert list(index.within(None)) == index.grouped(NAMESPACE, "f") == []


async def test_an_object_at_which_decoding_breaks_is_known_without_a_value_too() -> None:
    """An annotation that somebody edited must not end the watch, and with it the operator."""

    async def broken(found: Manifest, before: str | None) -> str:
        raise KeyError("attempt")

    index: Collection[str] = Collection(broken)
    await index.take(object_of("a", 5, "five"))
    entry = index.entry(NAMESPACE, "a")
    assert entry is not None
    assert (entry.version, entry.value) == ("5", None)


async def test_listeners_hear_of_each_change_once() -> None:
    heard: list[tuple[str | None, str | None]] = []
    index = collection()
    index.listen(lambda namespace, name, before, after: heard.append((before, after)))
    for found in (object_of("a", 5, "five"), object_of("a", 5, "five"), object_of("a", 6, "six")):
        await index.take(found)
    index.drop(NAMESPACE, "a", "7")
    index.drop(NAMESPACE, "a", "7")
    assert heard == [(None, "five"), ("five", "six"), ("six", None)]
