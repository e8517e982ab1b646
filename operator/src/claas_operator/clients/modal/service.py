"""What is asked of Modal for adapters, and how it fails. The part that knows Modal's client is loaded when it is
first needed: an operator without such an adapter never has it in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol, cast

from claas_operator.clients.reader import Reader
from claas_operator.errors import OperatorError
from claas_operator.plan.modal.pointer import ModalPlace, ModalServer, ServedPointer
from claas_operator.plan.modal.state import ModalTrouble


class ModalError(OperatorError):
    """A call of Modal did not do what it was to do; the message says what somebody has to do."""

    def __init__(self, trouble: ModalTrouble, message: str) -> None:
        super().__init__(message)
        self.trouble = trouble


@dataclass(frozen=True)
class LookResult:
    """What a look at a served name has found."""

    pointer: ServedPointer | None
    url: str


@dataclass(frozen=True)
class ConfirmResult:
    """What asking for a version has come to; only one that answers is told by a value."""

    url: str
    containers: int


class RefusedVersionError(ModalError):
    """The containers refuse the version."""

    def __init__(self, message: str) -> None:
        super().__init__(ModalTrouble.REFUSED, message)


class PointerMovedError(ModalError):
    """The pointer is not as it was written any more."""

    def __init__(self, found: ServedPointer | None) -> None:
        super().__init__(ModalTrouble.NOT_YET, "the pointer on the Modal Volume is not as the operator wrote it")
        self.found = found


class ModalService(Protocol):
    """The calls. All of them end in time, and raise ModalError."""

    async def look(self, namespace: str, server: ModalServer, served_name: str) -> LookResult:
        """The pointer of a served name, and the server's address. Wakes no container."""

    async def point(self, namespace: str, place: ModalPlace, pointer: ServedPointer) -> None:
        """Write a pointer."""

    async def confirm(
        self, namespace: str, server: ModalServer, pointer: ServedPointer, url: str | None
    ) -> ConfirmResult:
        """See whether the version of a pointer answers at the server's address, which is looked up if there is none.
        Raises RefusedVersionError where containers refuse the version, and PointerMovedError."""

    async def remove(self, namespace: str, place: ModalPlace, served_name: str, adapter_uid: str) -> None:
        """Remove a pointer, unless it is another adapter's or gone."""

    async def close(self) -> None:
        """Give all connections up."""


ServiceSource = Callable[[], Awaitable[ModalService]]


def platform(read: Reader, server_url: str | None) -> ServiceSource:
    """The real one, loaded at the first call. `server_url`: of Modal's API; None: the client's own."""

    async def load() -> ModalService:
        # It takes about a second, in which nothing else would go on.
        module = await asyncio.to_thread(import_module, "claas_operator.clients.modal.platform")
        return cast(ModalService, module.ModalPlatform(read, server_url))

    return load
