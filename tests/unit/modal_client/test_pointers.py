"""Pointers and receipts as documents, and where they lie."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from claas_bounded.waits import Deadline
from claas_modal_client.addresses import VolumeAddress, is_path
from claas_modal_client.errors import ModalFault, ModalServiceError
from claas_modal_client.pointers import (
    Pointer,
    PointerList,
    PointerProbe,
    Pointers,
    Receipt,
    ReceiptOutcome,
    name_key,
    pointer_path,
    receipt_path,
)
from claas_modal_client.volume import ModalVolume, VolumeEntry

ADDRESS = VolumeAddress("claas-adapters", "adapters/uid/7-ab-cd", "0" * 64)
POINTER = Pointer(
    served_name="tone",
    adapter_uid="uid",
    version=7,
    weights=ADDRESS,
    probe=PointerProbe(prompt="Hello", max_tokens=8),
)
RECEIPT = Receipt(
    served_name="tone",
    adapter_uid="uid",
    version=7,
    weights=ADDRESS,
    outcome=ReceiptOutcome.REFUSED,
    message="it failed its probe",
    container="ta-1",
    time=datetime(2026, 1, 1, tzinfo=UTC),
    max_containers=2,
)


@pytest.mark.parametrize("document", [POINTER, RECEIPT])
def test_a_document_is_read_as_it_was_written(document: Pointer | Receipt) -> None:
    assert type(document).model_validate_json(document.model_dump_json()) == document


@given(name=st.text(min_size=1), other=st.text(min_size=1))
def test_every_served_name_has_a_place_of_its_own(name: str, other: str) -> None:
    path = pointer_path("claas-vllm", name)
    assert is_path(path)
    assert is_path(receipt_path("claas-vllm", name, "ta-1"))
    assert (path == pointer_path("claas-vllm", other)) is (name == other)


def test_a_pointer_out_of_the_volume_is_refused() -> None:
    with pytest.raises(ValidationError):
        Pointer.model_validate({**POINTER.model_dump(), "weights": f"modal://v/../x#{'0' * 64}"})


@pytest.mark.parametrize("value", ["", "..", ".", "a/b", "../a", "a\n", ".hidden", "a b"])
def test_identifiers_that_become_part_of_a_path_lead_nowhere_else(value: str) -> None:
    with pytest.raises(ValidationError):
        Pointer.model_validate({**POINTER.model_dump(), "adapter_uid": value})
    with pytest.raises(ValidationError):
        Receipt.model_validate({**RECEIPT.model_dump(), "container": value})


def test_a_newer_release_may_say_more() -> None:
    assert Pointer.model_validate({**POINTER.model_dump(), "priority": 1}) == POINTER


@dataclass
class PointerFiles:
    """A Volume with pointers; those of None can't be read, those that are missing are gone since they were listed."""

    content: dict[str, bytes | None]
    listed: tuple[str, ...]

    async def list(self, folder: str, deadline: Deadline) -> tuple[VolumeEntry, ...]:
        return tuple(VolumeEntry(path, is_folder=False, size=1, modified=0.0) for path in self.listed)

    async def read(self, path: str, deadline: Deadline, limit: int) -> bytes:
        if path not in self.content:
            raise ModalServiceError(ModalFault.FILE_MISSING, "it is gone")
        found = self.content[path]
        if found is None:
            raise ModalServiceError(ModalFault.UNREACHABLE, "it does not answer")
        return found


@dataclass
class ReceiptFiles:
    """A Volume with receipts, by the time that they were written at."""

    written: dict[str, float]
    now: float

    async def upload(self, files: dict[str, bytes], deadline: Deadline, *, overwrite: bool) -> None:
        self.written |= dict.fromkeys(files, self.now)

    async def list(self, folder: str, deadline: Deadline) -> tuple[VolumeEntry, ...]:
        return tuple(
            VolumeEntry(path, is_folder=False, size=1, modified=at)
            for path, at in self.written.items()
            if path.startswith(f"{folder}/")
        )

    async def remove(self, path: str, deadline: Deadline) -> bool:
        return self.written.pop(path, None) is not None


async def test_a_new_receipt_takes_the_place_of_those_that_are_a_day_older() -> None:
    old, recent, other = (
        receipt_path("app", "tone", "ta-8"),
        receipt_path("app", "tone", "ta-9"),
        receipt_path("app", "mood", "ta-8"),
    )
    volume = ReceiptFiles({old: 0.0, recent: 80_000.0, other: 0.0}, now=100_000.0)
    await Pointers(cast(ModalVolume, volume), "app").write_receipt(RECEIPT, Deadline.after(1.0))
    assert set(volume.written) == {receipt_path("app", "tone", "ta-1"), recent, other}


async def test_a_pointer_that_cannot_be_read_does_not_hide_the_others() -> None:
    paths = {name: pointer_path("app", name) for name in ("tone", "torn", "stuck", "gone")}
    content = {paths["tone"]: POINTER.model_dump_json().encode(), paths["torn"]: b"{", paths["stuck"]: None}
    volume = PointerFiles(content, tuple(paths.values()))
    found = await Pointers(cast(ModalVolume, volume), "app").list(Deadline.after(1.0))
    assert found == PointerList((POINTER,), frozenset({name_key("torn"), name_key("stuck")}))


class SlowFiles(PointerFiles):
    """One that gives no file before 16 are asked for."""

    together = asyncio.Barrier(16)

    async def read(self, path: str, deadline: Deadline, limit: int) -> bytes:
        await self.together.wait()
        return await super().read(path, deadline, limit)


async def test_many_pointers_are_not_read_one_after_the_other() -> None:
    names = [f"adapter-{number}" for number in range(32)]
    pointers = tuple(POINTER.model_copy(update={"served_name": name}) for name in names)
    content: dict[str, bytes | None] = {
        pointer_path("app", each.served_name): each.model_dump_json().encode() for each in pointers
    }
    async with asyncio.timeout(5):
        found = await Pointers(cast(ModalVolume, SlowFiles(content, tuple(content))), "app").list(Deadline.after(5.0))
    assert found == PointerList(pointers, frozenset())
