"""Folders on the Volume that no step and no server needs any more."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime, timedelta

from claas_bounded.waits import Deadline
from claas_modal_client.addresses import VolumeAddress
from claas_modal_client.connection import ModalConnection
from claas_modal_client.errors import ModalFault, ModalServiceError
from claas_modal_client.faults import fault
from claas_modal_client.pointers import SERVING_FOLDER, Pointers
from claas_modal_client.volume import ModalVolume, VolumeEntry
from claas_trainer.engines.modal.folders import adapter_files, uploaded_name
from claas_trainer.engines.modal.wire import adapter_folder
from claas_trainer.errors import StoreError
from claas_trainer.logs import log
from claas_trainer.store.record import VersionRecord
from claas_trainer.store.versions import VersionStore

TIDY_SECONDS = 30.0
YOUNG = timedelta(hours=1)
"""A folder that was written within this time may belong to a step that is not published yet."""


def superseded(records: Iterable[VersionRecord]) -> dict[int, datetime | None]:
    """Since when each version is neither the head nor the head's parent, given that each was the head when it was
    published; None: it still is one of them."""
    ordered = sorted(records, key=lambda record: record.number)
    last: dict[int, int] = {}
    for index, record in enumerate(ordered):
        last[record.number] = index
        if record.parent is not None:
            last[record.parent] = index
    ends = [record.created for record in ordered[1:]]
    return {
        record.number: (ends[last[record.number]] if last[record.number] < len(ends) else None) for record in ordered
    }


def to_remove(
    written: Mapping[str, datetime],
    records: Collection[VersionRecord],
    root: str,
    pointed: Collection[str],
    now: datetime,
    ttl: timedelta,
) -> list[str]:
    """The folders to remove.

    `written`: when each folder was written last, by its path. `root`: the adapter's own folder, in which all others
    are what reruns and ended attempts have left. `pointed`: the paths that pointers name.
    """
    since = superseded(records)
    removed = []
    for folder, at in sorted(written.items()):
        if folder in pointed or now - at < YOUNG:
            continue
        ends = [since[record.number] for record in records if _names(record, folder)]
        if all(end is not None and now - end >= ttl for end in ends) and (ends or folder.startswith(f"{root}/")):
            removed.append(folder)
    return removed


def _names(record: VersionRecord, folder: str) -> bool:
    """Whether a folder holds files of a version: its step's, or those that a trainer has uploaded."""
    if any(_path(address) == folder for address in _addresses(record)):
        return True
    name = folder.rpartition("/")[2]
    uploads = [uploaded_name(record.number, files) for files in (record.files, adapter_files(record.files))]
    return any(name == upload or name.startswith(f"{upload}-") for upload in uploads)


def _addresses(record: VersionRecord) -> list[str]:
    state = record.state.uri if record.state is not None else None
    return [address for address in (record.weights, state) if address is not None]


def _path(address: str) -> str | None:
    try:
        return VolumeAddress.parse(address).folder
    except ValueError:
        return None


def written_last(entries: Iterable[VolumeEntry], root: str) -> dict[str, datetime]:
    """When each folder in `root` was written last, of those of which that is known."""
    newest: dict[str, float] = {}
    for entry in entries:
        name = entry.path.removeprefix(f"{root}/").partition("/")[0]
        if entry.path.startswith(f"{root}/") and (entry.is_folder or "/" in entry.path.removeprefix(f"{root}/")):
            folder = f"{root}/{name}"
            newest[folder] = max(newest.get(folder, 0.0), entry.modified)
    return {folder: datetime.fromtimestamp(at, UTC) for folder, at in newest.items() if at > 0}


async def tidy(
    connection: ModalConnection, volume_name: str, adapter_uid: str, store: VersionStore, ttl_seconds: int
) -> None:
    """Remove what is needed no more. Raises nothing; takes 30 s at most."""
    deadline, ttl = Deadline.after(TIDY_SECONDS), timedelta(seconds=ttl_seconds)
    volume, root = ModalVolume(connection, volume_name), adapter_folder(adapter_uid)
    try:
        records = [store.read(number).record for number in store.numbers()]
        written: dict[str, datetime] = {}
        for each in sorted({root, *_roots(records, volume_name)}):
            written |= written_last(await _listed(volume, each, deadline), each)
        if not to_remove(written, records, root, (), datetime.now(UTC), ttl):
            return
        pointed = await _pointed(volume, deadline)
        for folder in to_remove(written, records, root, pointed, datetime.now(UTC), ttl):
            await volume.remove(folder, deadline)
            log("folder-removed", folder=folder)
    except (StoreError, ModalServiceError) as error:
        log("volume-not-tidied", why=error.message)


def _roots(records: Iterable[VersionRecord], volume: str) -> set[str]:
    """Folders of adapters that the versions were made for: an adapter that was made again goes on with them."""
    addresses = [VolumeAddress.parse(text) for record in records for text in _addresses(record) if _path(text)]
    return {address.folder.rpartition("/")[0] for address in addresses if address.volume == volume}


async def _listed(volume: ModalVolume, folder: str, deadline: Deadline) -> tuple[VolumeEntry, ...]:
    try:
        return await volume.list(folder, deadline, recursive=True)
    except ModalServiceError as error:
        if error.kind is not ModalFault.FILE_MISSING:
            raise
        return ()


async def _pointed(volume: ModalVolume, deadline: Deadline) -> set[str]:
    """The folders that pointers name. Raises ModalServiceError, also if one can't be read: it might name any."""
    pointed: set[str] = set()
    for app in await _listed(volume, SERVING_FOLDER, deadline):
        if not app.is_folder:
            continue
        found = await Pointers(volume, app.name).list(deadline)
        if found.unreadable:
            raise fault(
                ModalFault.REQUEST_REFUSED, f"for the pointers of {app.name}", "has one that this release can't read"
            )
        pointed |= {pointer.weights.folder for pointer in found.pointers}
    return pointed
