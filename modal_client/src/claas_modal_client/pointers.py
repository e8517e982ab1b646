"""What the containers of a server should serve, and what they say that they do: small files on the Volume.

The operator writes pointers and reads receipts, a container's follower does the opposite. Both files are named by a
digest of the served name, which may hold any character.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Annotated, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from claas_bounded.waits import Deadline
from claas_modal_client.addresses import SEGMENT, AddressField
from claas_modal_client.errors import ModalFault, ModalServiceError
from claas_modal_client.volume import ModalVolume, VolumeEntry

SERVING_FOLDER = "serving"
"""Where pointers are, in a folder for each app."""
_MOST_BYTES = 64 << 10
_MOST_MESSAGE = 1000
_SUFFIX = ".json"
_RECEIPT_SECONDS = 86400.0
_READS_AT_ONCE = 16
"""One after the other, the pointers of a hundred adapters would take longer than a container waits for them."""
LATEST_RECEIPTS = 20
"""So many of a name are read; a server has fewer containers at once."""
M = TypeVar("M", bound=BaseModel)


PathSegment = Annotated[str, StringConstraints(pattern=f"^{SEGMENT}$")]
"""An identifier that readers and writers make part of a path."""


class _Nothing(Enum):
    """Why a file gave no document."""

    MISSING = "missing"
    """It may have been removed since it was listed."""
    UNREADABLE = "unreadable"


class PointerProbe(BaseModel):
    """The request that checks a loaded version. Its prompt is not private."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt: str
    max_tokens: int


class Pointer(BaseModel):
    """What should be served under a name. A newer release may add fields; older ones ignore them."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    served_name: str = Field(min_length=1)
    adapter_uid: PathSegment
    version: int = Field(ge=0)
    weights: AddressField
    """The folder of the version's files."""
    probe: PointerProbe | None = None


class ReceiptOutcome(StrEnum):
    """What a container has done with a pointer."""

    SERVED = "Served"
    REFUSED = "Refused"
    """The version can't be loaded, or failed its probe; what was served before still is."""


class Receipt(BaseModel):
    """What a container has done with the pointer of a name."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    served_name: str
    adapter_uid: PathSegment
    version: int
    weights: AddressField
    """As the pointer said."""
    outcome: ReceiptOutcome
    message: str = Field(default="", max_length=_MOST_MESSAGE)
    """Why it was refused. Holds no user's text."""
    container: PathSegment
    """The platform's id of the container (task)."""
    time: AwareDatetime
    max_containers: int = Field(ge=1)
    """How many containers the server may have."""


@dataclass(frozen=True)
class PointerList:
    """All pointers of a server."""

    pointers: tuple[Pointer, ...]
    unreadable: frozenset[str]
    """`name_key` of names whose pointers are there, and can't be read now or by this release."""


def name_key(served_name: str) -> str:
    """A served name as part of a path."""
    return hashlib.sha256(served_name.encode()).hexdigest()[:32]


def pointer_path(app: str, served_name: str) -> str:
    """Where a pointer is."""
    return f"{SERVING_FOLDER}/{app}/{name_key(served_name)}{_SUFFIX}"


def receipt_folder(app: str, served_name: str) -> str:
    """Where the receipts for a name are."""
    return f"receipts/{app}/{name_key(served_name)}"


def receipt_path(app: str, served_name: str, container: str) -> str:
    """Where a container's receipt is."""
    return f"{receipt_folder(app, served_name)}/{container}{_SUFFIX}"


class Pointers:
    """Pointers and receipts of the server of an app. All methods raise ModalServiceError."""

    def __init__(self, volume: ModalVolume, app: str) -> None:
        self._volume = volume
        self._app = app

    async def write(self, pointer: Pointer, deadline: Deadline) -> None:
        """Say what should be served under a name."""
        content = pointer.model_dump_json(indent=1).encode()
        await self._volume.upload({pointer_path(self._app, pointer.served_name): content}, deadline, overwrite=True)

    async def read(self, served_name: str, deadline: Deadline) -> Pointer | None:
        """The pointer of a name; None if there is none that this release can read."""
        found = await self._read(pointer_path(self._app, served_name), Pointer, deadline)
        return found if isinstance(found, Pointer) else None

    async def list(self, deadline: Deadline) -> PointerList:
        """All pointers. One that the Volume does not give does not keep the others from being read."""
        slots = asyncio.Semaphore(_READS_AT_ONCE)

        async def read(path: str) -> Pointer | _Nothing:
            async with slots:
                try:
                    return await self._read(path, Pointer, deadline)
                except ModalServiceError:
                    return _Nothing.UNREADABLE

        paths = await self._files(f"{SERVING_FOLDER}/{self._app}", deadline)
        pointers: list[Pointer] = []
        unreadable: set[str] = set()
        for path, found in zip(paths, await asyncio.gather(*map(read, paths)), strict=True):
            key = path.rpartition("/")[2].removesuffix(_SUFFIX)
            if isinstance(found, Pointer) and name_key(found.served_name) == key:
                pointers.append(found)
            elif found is not _Nothing.MISSING:
                unreadable.add(key)
        return PointerList(tuple(pointers), frozenset(unreadable))

    async def remove(self, served_name: str, deadline: Deadline) -> bool:
        """Serve nothing under a name any more, and forget its receipts. False if there was no pointer."""
        removed = await self._volume.remove(pointer_path(self._app, served_name), deadline)
        await self._volume.remove(receipt_folder(self._app, served_name), deadline)
        return removed

    async def write_receipt(self, receipt: Receipt, deadline: Deadline) -> None:
        """Say what a container has done. Receipts that are a day older are removed: their containers are gone, or
        have nothing new to say."""
        path = receipt_path(self._app, receipt.served_name, receipt.container)
        await self._volume.upload({path: receipt.model_dump_json(indent=1).encode()}, deadline, overwrite=True)
        with contextlib.suppress(ModalServiceError):
            entries = await self._volume.list(receipt_folder(self._app, receipt.served_name), deadline)
            newest = max((each.modified for each in entries), default=0.0)
            for each in entries:
                if each.path != path and each.modified < newest - _RECEIPT_SECONDS:
                    await self._volume.remove(each.path, deadline)

    async def receipts(self, served_name: str, deadline: Deadline) -> tuple[Receipt, ...]:
        """What containers have said about a name lately, the latest first; some of these may be gone."""
        latest = (await self._latest_receipts(served_name, deadline))[:LATEST_RECEIPTS]
        found = [await self._read(path, Receipt, deadline) for path in latest]
        receipts = [each for each in found if isinstance(each, Receipt) and each.served_name == served_name]
        return tuple(sorted(receipts, key=lambda receipt: receipt.time, reverse=True))

    async def _latest_receipts(self, served_name: str, deadline: Deadline) -> tuple[str, ...]:
        entries = await self._entries(receipt_folder(self._app, served_name), deadline)
        return tuple(each.path for each in sorted(entries, key=lambda each: each.modified, reverse=True))

    async def _files(self, folder: str, deadline: Deadline) -> tuple[str, ...]:
        return tuple(each.path for each in await self._entries(folder, deadline))

    async def _entries(self, folder: str, deadline: Deadline) -> tuple[VolumeEntry, ...]:
        try:
            entries = await self._volume.list(folder, deadline)
        except ModalServiceError as error:
            if error.kind is not ModalFault.FILE_MISSING:
                raise
            return ()
        return tuple(each for each in entries if not each.is_folder and each.name.endswith(_SUFFIX))

    async def _read(self, path: str, kind: type[M], deadline: Deadline) -> M | _Nothing:
        try:
            return kind.model_validate_json(await self._volume.read(path, deadline, _MOST_BYTES))
        except ModalServiceError as error:
            if error.kind is not ModalFault.FILE_MISSING:
                raise
            return _Nothing.MISSING
        except ValidationError:
            return _Nothing.UNREADABLE
