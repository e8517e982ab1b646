"""What has to be done so that each name serves its pointer's version; pure.

A name changes only when its pointer could be read and names another version than the one served. So neither a Volume
that can't be read, nor a version that can't be served, takes anything out of service.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from claas_modal_client.pointers import Pointer, PointerList, ReceiptOutcome, name_key

_FIRST_RETRY_SECONDS = 3.0
_LONGEST_RETRY_SECONDS = 300.0
REPEAT_SECONDS = 900.0
"""After so long a receipt is written again."""


class LoadFault(Enum):
    """Why a version was not put into service."""

    REFUSED = "refused"
    """Its files are not those that were promised, or vLLM does not take it."""
    PASSING = "passing"
    """Another try may succeed."""


@dataclass(frozen=True)
class PointerFailure:
    """What came of the last tries at a pointer."""

    fault: LoadFault
    message: str
    tries: int
    retry_at: float
    """In seconds of the follower's clock."""


@dataclass(frozen=True)
class InService:
    """The version that vLLM serves under a name."""

    version: int
    path: str


@dataclass(frozen=True)
class ReceiptContent:
    """What a receipt says of a pointer."""

    pointer: Pointer
    outcome: ReceiptOutcome
    message: str = ""


@dataclass(frozen=True)
class WrittenReceipt:
    """The last receipt for a name."""

    content: ReceiptContent
    at: float
    """In seconds of the follower's clock."""


@dataclass(frozen=True)
class FollowerView:
    """What is known at one look. A pointer's folder has the same `path` each time."""

    pointers: PointerList
    served: Mapping[str, InService]
    paths: Mapping[Pointer, str]
    failures: Mapping[Pointer, PointerFailure]

    def serves(self, pointer: Pointer) -> bool:
        """Whether a pointer's version is served."""
        found = self.served.get(pointer.served_name)
        return found == InService(pointer.version, self.paths[pointer])


def to_load(view: FollowerView, now: float) -> list[Pointer]:
    """The pointers whose versions are to be put into service, in the order of their names."""
    return sorted(
        (pointer for pointer in view.pointers.pointers if not view.serves(pointer) and _due(view, pointer, now)),
        key=lambda pointer: pointer.served_name,
    )


def _due(view: FollowerView, pointer: Pointer, now: float) -> bool:
    failure = view.failures.get(pointer)
    return failure is None or (failure.fault is LoadFault.PASSING and failure.retry_at <= now)


def to_remove(view: FollowerView) -> list[str]:
    """The served names that have no pointer, not even one that can't be read."""
    wanted = {name_key(pointer.served_name) for pointer in view.pointers.pointers} | view.pointers.unreadable
    return sorted(name for name in view.served if name_key(name) not in wanted)


def to_say(view: FollowerView, said: Mapping[str, WrittenReceipt], now: float) -> list[ReceiptContent]:
    """The receipts to write: what holds, and was not said yet, or long ago. Whoever removes a pointer removes its
    receipts, and may write the same pointer again."""
    due: list[ReceiptContent] = []
    for pointer in view.pointers.pointers:
        failure = view.failures.get(pointer)
        if view.serves(pointer):
            content = ReceiptContent(pointer, ReceiptOutcome.SERVED)
        elif failure is not None and failure.fault is LoadFault.REFUSED:
            content = ReceiptContent(pointer, ReceiptOutcome.REFUSED, failure.message)
        else:
            continue
        before = said.get(pointer.served_name)
        if before is None or before.content != content or now - before.at >= REPEAT_SECONDS:
            due.append(content)
    return due


def to_forget(view: FollowerView, loaded: Iterable[str], local: Iterable[str]) -> list[str]:
    """The local folders that neither a pointer nor vLLM needs. vLLM reads a loaded adapter again when it has dropped
    it from memory."""
    needed = {*loaded, *view.paths.values()}
    return sorted(path for path in local if path not in needed)


def settled(view: FollowerView) -> bool:
    """Whether each pointer could be read, and its version is served, or refused: a container can begin to answer."""
    return not view.pointers.unreadable and all(
        view.serves(pointer)
        or ((failure := view.failures.get(pointer)) is not None and failure.fault is LoadFault.REFUSED)
        for pointer in view.pointers.pointers
    )


def failed(before: PointerFailure | None, fault: LoadFault, message: str, now: float) -> PointerFailure:
    """The failures of a pointer after one more."""
    tries = 1 if before is None else before.tries + 1
    delay = min(_FIRST_RETRY_SECONDS * 2 ** min(tries - 1, 10), _LONGEST_RETRY_SECONDS)
    return PointerFailure(fault, message, tries, now + delay)
