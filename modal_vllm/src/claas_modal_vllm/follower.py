"""Keeps the versions in service that the pointers name: looks, does what is missing, looks again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Protocol

from claas_bounded.waits import Deadline
from claas_modal_client.errors import ModalFault, ModalServiceError
from claas_modal_client.pointers import Pointer, PointerList, Receipt, name_key
from claas_modal_vllm.errors import VersionFaultError, VllmFaultError
from claas_modal_vllm.plan import (
    FollowerView,
    InService,
    LoadFault,
    PointerFailure,
    ReceiptContent,
    WrittenReceipt,
    failed,
    settled,
    to_forget,
    to_load,
    to_remove,
    to_say,
)

logger = logging.getLogger(__name__)

LOOK_SECONDS = 3.0
_READ_SECONDS = 30.0
_FETCH_SECONDS = 600.0
_FETCHES_AT_ONCE = 4
_TRIES_FOR_FILES = 3
"""After so many tries, files that are not as promised are not expected to appear any more."""


class PointerStore(Protocol):
    """Pointers and receipts; all raise ModalServiceError."""

    async def list(self, deadline: Deadline) -> PointerList:
        """All pointers."""

    async def write_receipt(self, receipt: Receipt, deadline: Deadline) -> None:
        """Say what this container has done."""


class VersionFiles(Protocol):
    """Local copies of versions; all raise OSError, `fetch` also ModalServiceError."""

    def path(self, pointer: Pointer) -> str:
        """Where a pointer's version is, or would be."""

    async def fetch(self, pointer: Pointer, deadline: Deadline) -> str:
        """Bring a pointer's version here."""

    async def all(self) -> list[str]:
        """The paths of all versions."""

    async def forget(self, path: str) -> None:
        """Remove a version."""


class AdapterServer(Protocol):
    """vLLM in this container; all raise VllmFaultError, `serve` also VersionFaultError."""

    async def served(self) -> Mapping[str, InService]:
        """The versions behind all served names."""

    async def loaded(self) -> frozenset[str]:
        """The paths of all loaded adapters."""

    async def serve(self, pointer: Pointer, path: str) -> None:
        """Put a version into service."""

    async def remove(self, served_name: str) -> None:
        """Take a name out of service."""


class Follower:
    """Follows the pointers of one server. `container` and `max_containers` go into receipts; a look waits no longer
    than `patience_seconds` for files."""

    def __init__(
        self,
        pointers: PointerStore,
        files: VersionFiles,
        server: AdapterServer,
        *,
        container: str,
        max_containers: int,
        clock: Callable[[], float] = time.monotonic,
        patience_seconds: float = 10.0,
    ) -> None:
        self._pointers = pointers
        self._files = files
        self._server = server
        self._container = container
        self._max_containers = max_containers
        self._clock = clock
        self._patience_seconds = patience_seconds
        self._slots = asyncio.Semaphore(_FETCHES_AT_ONCE)
        self._fetching: dict[Pointer, asyncio.Task[str | None]] = {}
        self._failures: dict[Pointer, PointerFailure] = {}
        self._said: dict[str, WrittenReceipt] = {}
        self._why = ""
        self.has_looked = False
        """Whether the pointers could be read at least once."""

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self.look()

    async def look(self) -> bool:
        """Look once and do what is missing. Whether all that the pointers name is served or refused; False also where
        the pointers can't be read or vLLM does not answer, and then nothing is changed. Raises nothing."""
        try:
            return await self._look()
        except (ModalServiceError, VllmFaultError) as error:
            self._tell(str(error))
        except Exception as error:  # noqa: BLE001 - whatever it is, the next look may go well
            self._tell(f"an unexpected {type(error).__name__}")
        return False

    async def _look(self) -> bool:
        pointers = await self._pointers.list(Deadline.after(_READ_SECONDS))
        view = self._view(pointers, await self._server.served())
        self._tell("")
        self.has_looked = True
        self._prune(pointers)
        await self._load(to_load(view, self._clock()))
        for name in to_remove(view):
            await self._remove(name)
        view = self._view(pointers, await self._server.served())
        for said in to_say(view, self._said, self._clock()):
            await self._say(said)
        await self._tidy(view)
        return settled(view)

    def why(self) -> str:
        """What keeps versions out of service, for whoever starts the container; empty if nothing does."""
        return self._why or "; ".join(
            f"version {pointer.version} of {pointer.served_name}: {failure.message}"
            for pointer, failure in self._failures.items()
        )

    def _view(self, pointers: PointerList, served: Mapping[str, InService]) -> FollowerView:
        paths = {pointer: self._files.path(pointer) for pointer in pointers.pointers}
        return FollowerView(pointers, served, paths, dict(self._failures))

    def _prune(self, pointers: PointerList) -> None:
        """Forget what was learnt of pointers that have changed."""
        self._failures = {each: failure for each, failure in self._failures.items() if each in pointers.pointers}
        for pointer in [each for each in self._fetching if each not in pointers.pointers]:
            self._fetching.pop(pointer).cancel()
        keys = {name_key(pointer.served_name) for pointer in pointers.pointers} | pointers.unreadable
        self._said = {name: said for name, said in self._said.items() if name_key(name) in keys}

    async def _load(self, pointers: Sequence[Pointer]) -> None:
        """Fetch versions, some at once, and put those that are here into service one by one. One that takes long is
        left for a later look."""
        for pointer in pointers:
            if pointer not in self._fetching:
                self._fetching[pointer] = asyncio.create_task(self._fetch(pointer))
        if self._fetching:
            await asyncio.wait(self._fetching.values(), timeout=self._patience_seconds)
        for pointer in [each for each, task in self._fetching.items() if task.done()]:
            path = self._fetching.pop(pointer).result()
            if path is not None:
                await self._serve(pointer, path)

    async def _fetch(self, pointer: Pointer) -> str | None:
        try:
            async with self._slots:
                return await self._files.fetch(pointer, Deadline.after(_FETCH_SECONDS))
        except ModalServiceError as error:
            before = self._failures.get(pointer)
            tries = 1 if before is None else before.tries + 1
            gone = error.kind is ModalFault.FILE_MISSING and tries >= _TRIES_FOR_FILES
            self._failed(pointer, LoadFault.REFUSED if gone else LoadFault.PASSING, str(error))
        except OSError as error:
            self._failed(pointer, LoadFault.PASSING, str(error))
        except Exception as error:  # noqa: BLE001 - one version must not keep the others from being followed
            self._failed(pointer, LoadFault.PASSING, f"an unexpected {type(error).__name__}")
        return None

    async def _serve(self, pointer: Pointer, path: str) -> None:
        try:
            await self._server.serve(pointer, path)
        except VersionFaultError as error:
            self._failed(pointer, LoadFault.REFUSED, str(error))
        except VllmFaultError as error:
            self._failed(pointer, LoadFault.PASSING, str(error))
        except Exception as error:  # noqa: BLE001 - as above
            self._failed(pointer, LoadFault.PASSING, f"an unexpected {type(error).__name__}")
        else:
            self._failures.pop(pointer, None)
            logger.info("version %d of %s is served", pointer.version, pointer.served_name)

    def _failed(self, pointer: Pointer, fault: LoadFault, message: str) -> None:
        before = self._failures.get(pointer)
        self._failures[pointer] = failed(before, fault, message, self._clock())
        if before is None or before.message != message:
            logger.warning("version %d of %s is not served: %s", pointer.version, pointer.served_name, message)

    async def _remove(self, name: str) -> None:
        try:
            await self._server.remove(name)
        except VllmFaultError as error:
            logger.warning("%s is still served: %s", name, error)
        else:
            logger.info("%s is no longer served", name)

    async def _say(self, said: ReceiptContent) -> None:
        pointer = said.pointer
        receipt = Receipt(
            served_name=pointer.served_name,
            adapter_uid=pointer.adapter_uid,
            version=pointer.version,
            weights=pointer.weights,
            outcome=said.outcome,
            message=said.message[:1000],
            container=self._container,
            time=datetime.now(UTC),
            max_containers=self._max_containers,
        )
        try:
            await self._pointers.write_receipt(receipt, Deadline.after(_READ_SECONDS))
        except ModalServiceError as error:
            logger.warning("the receipt for %s is written later: %s", pointer.served_name, error)
        else:
            self._said[pointer.served_name] = WrittenReceipt(said, self._clock())

    async def _tidy(self, view: FollowerView) -> None:
        """Remove local copies that nobody needs. They cost disk alone, so failures wait for the next look."""
        try:
            local = await self._files.all()
            # Most looks find nothing to remove, without asking vLLM.
            if to_forget(view, (), local):
                for path in to_forget(view, await self._server.loaded(), local):
                    await self._files.forget(path)
        except (OSError, VllmFaultError) as error:
            logger.warning("old versions stay on the disk: %s", error)

    def _tell(self, why: str) -> None:
        if why and why != self._why:
            logger.warning("the served versions stay as they are: %s", why)
        self._why = why
