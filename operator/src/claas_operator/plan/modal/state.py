"""What the operator knows of an adapter's servers on Modal, and how each answer changes that. Kept in memory only:
after a restart the pointer is read once, and a version that status says is served needs no other confirmation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from claas_operator.plan.modal.pointer import ServedPointer

FIRST_RETRY_SECONDS = 2.0
LONGEST_RETRY_SECONDS = 300.0
SLOWER = 1.5
LONGEST_ASKING_SECONDS = 1800.0
"""Each request to a server wakes a container, which costs money."""
LOOK_AGAIN_SECONDS = 600.0
"""How old what is known of a pointer may be: somebody may have emptied the Volume. A look wakes no container."""


class ModalCall(StrEnum):
    """What is asked of Modal."""

    LOOK = "Look"
    """What the pointer says, and where the server is."""
    POINT = "Point"
    """To write the pointer."""
    CONFIRM = "Confirm"
    """Whether the version answers."""


class ModalTrouble(StrEnum):
    """Why a call did not do what it was to do."""

    NOT_DEPLOYED = "NotDeployed"
    CREDENTIALS_REFUSED = "CredentialsRefused"
    BILLING_REQUIRED = "BillingRequired"
    SERVICE_UNREACHABLE = "ServiceUnreachable"
    """Modal's API does not answer, or not in time, or wants fewer requests."""
    SERVER_UNREACHABLE = "ServerUnreachable"
    """The server does not answer at its address."""
    NOT_YET = "NotYet"
    """A container starts, or serves another version."""
    REFUSED = "Refused"
    """A container refuses the version."""


ASKS_SERVER = frozenset({ModalTrouble.SERVER_UNREACHABLE, ModalTrouble.NOT_YET, ModalTrouble.REFUSED})


@dataclass(frozen=True)
class Setback:
    """A call that did not do what it was to do, and when it is tried again."""

    trouble: ModalTrouble
    message: str
    times: int
    """How often in a row, whatever the trouble was."""
    at: datetime
    retry_at: datetime


@dataclass(frozen=True)
class ModalState:
    """What is known of the servers on Modal, for one adapter."""

    generation: int
    """Of the adapter's spec that it is about."""
    calling: ModalCall | None = None
    """The call that is under way."""
    looked: bool = False
    """Whether the pointer is known."""
    pointer: ServedPointer | None = None
    """The pointer as it was read or written; None: there is none."""
    known_at: datetime | None = None
    """When it was read or written."""
    written: bool = False
    """Whether this operator has written it."""
    url: str | None = None
    answered: ServedPointer | None = None
    """The pointer whose version has answered since it was written."""
    refused: ServedPointer | None = None
    """The pointer whose version the containers refuse; `setback` says why."""
    setback: Setback | None = None
    """None: the last call went well."""
    containers: int = 1
    """How many containers the server may have."""


def begun(state: ModalState, call: ModalCall) -> ModalState:
    """A call is under way."""
    return replace(state, calling=call)


def after_look(state: ModalState, pointer: ServedPointer | None, url: str | None, now: datetime) -> ModalState:
    """The pointer was read, and the server looked up."""
    known = replace(state, looked=True, pointer=pointer, known_at=now, written=False, url=url)
    return replace(known, calling=None, setback=None)


def after_writing(state: ModalState, pointer: ServedPointer, now: datetime) -> ModalState:
    """The pointer was written."""
    known = replace(state, pointer=pointer, known_at=now, written=True)
    return replace(known, calling=None, answered=None, refused=None, setback=None)


def after_answer(state: ModalState, pointer: ServedPointer, url: str, containers: int) -> ModalState:
    """The version of the pointer has answered."""
    return replace(state, calling=None, answered=pointer, url=url, containers=containers, refused=None, setback=None)


def after_setback(
    state: ModalState, trouble: ModalTrouble, message: str, now: datetime, *, refused: ServedPointer | None = None
) -> ModalState:
    """A call did not do what it was to do."""
    times = state.setback.times + 1 if state.setback is not None else 1
    setback = Setback(trouble, message, times, now, now + timedelta(seconds=rest_seconds(trouble, times)))
    return replace(state, calling=None, refused=refused, setback=setback)


def of_new_spec(state: ModalState, generation: int) -> ModalState:
    """The adapter's spec has changed: what it was about is looked at anew."""
    return ModalState(generation, url=state.url, answered=state.answered, containers=state.containers)


def rest_seconds(trouble: ModalTrouble, times: int) -> float:
    """Seconds until the next try after so many in a row. A server is asked a little later each time: it may take
    minutes to start, and each request keeps a container awake."""
    if trouble in ASKS_SERVER:
        return min(LONGEST_ASKING_SECONDS, float(SLOWER ** min(times - 1, 50)))
    return min(LONGEST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(times - 1, 16))


def confirmed(state: ModalState, wanted: ServedPointer, served_version: int | None) -> bool:
    """Whether the version is known to answer. An operator that has just started trusts the adapter's status, if the
    pointer was found as it should be."""
    if state.answered is not None:
        return wanted.same_version(state.answered)
    return state.looked and not state.written and state.pointer == wanted and served_version == wanted.version


@dataclass(frozen=True)
class Removal:
    """What has become of the removal of a pointer whose adapter is gone."""

    calling: bool = False
    done: bool = False
    setback: Setback | None = None


def after_failed_removal(before: Removal, trouble: ModalTrouble, message: str, now: datetime) -> Removal:
    """It could not be removed."""
    times = before.setback.times + 1 if before.setback is not None else 1
    retry_at = now + timedelta(seconds=rest_seconds(trouble, times))
    return Removal(setback=Setback(trouble, message, times, now, retry_at))
