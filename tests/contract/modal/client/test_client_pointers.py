"""Pointers and receipts on a Volume, by the real client against the peer."""

from __future__ import annotations

import itertools
import os
import time
from datetime import UTC, datetime, timedelta

import pytest

from claas_bounded.waits import Deadline
from claas_modal_client.addresses import VolumeAddress
from claas_modal_client.errors import ModalFault, ModalServiceError
from claas_modal_client.pointers import (
    Pointer,
    PointerProbe,
    Pointers,
    Receipt,
    ReceiptOutcome,
    name_key,
    pointer_path,
    receipt_path,
)
from claas_modal_client.volume import ModalVolume
from tests.peers.modal.failures import OUT_OF_ORDER
from tests.peers.modal.server import ModalPeer

pytestmark = pytest.mark.contract
NAMES = itertools.count()
MORNING = datetime(2026, 1, 1, 8, tzinfo=UTC)


def soon() -> Deadline:
    return Deadline.after(30)


def pointer(name: str = "tone", version: int = 1) -> Pointer:
    weights = VolumeAddress("claas-echo", f"adapters/uid/{version}-ab", f"{version:064x}")
    probe = PointerProbe(prompt="Hello", max_tokens=8)
    return Pointer(served_name=name, adapter_uid="uid", version=version, weights=weights, probe=probe)


def receipt(pointer: Pointer, container: str, hours: int) -> Receipt:
    return Receipt(
        served_name=pointer.served_name,
        adapter_uid=pointer.adapter_uid,
        version=pointer.version,
        weights=pointer.weights,
        outcome=ReceiptOutcome.SERVED,
        container=container,
        time=MORNING + timedelta(hours=hours),
        max_containers=2,
    )


@pytest.fixture
def app() -> str:
    """A server's app that no other test uses."""
    return f"claas-vllm-{next(NAMES)}"


async def test_a_pointer_is_written_followed_replaced_and_removed(volume: ModalVolume, app: str) -> None:
    pointers = Pointers(volume, app)
    assert (await pointers.list(soon())).pointers == ()
    assert await pointers.read("tone", soon()) is None
    await pointers.write(pointer("tone", 1), soon())
    await pointers.write(pointer("ä/../style", 7), soon())
    await pointers.write(pointer("tone", 2), soon())
    listed = await pointers.list(soon())
    assert sorted(listed.pointers, key=lambda each: each.version) == [pointer("tone", 2), pointer("ä/../style", 7)]
    assert not listed.unreadable
    assert await pointers.read("tone", soon()) == pointer("tone", 2)
    assert (await Pointers(volume, f"{app}-other").list(soon())).pointers == ()
    assert await pointers.remove("tone", soon())
    assert not await pointers.remove("tone", soon())
    assert (await pointers.list(soon())).pointers == (pointer("ä/../style", 7),)


async def test_receipts_come_latest_first_and_go_with_the_pointer(volume: ModalVolume, app: str) -> None:
    pointers = Pointers(volume, app)
    assert await pointers.receipts("tone", soon()) == ()
    await pointers.write(pointer(), soon())
    for container, hours in (("ta-1", 1), ("ta-2", 3), ("ta-1", 2)):
        await pointers.write_receipt(receipt(pointer(), container, hours), soon())
    found = await pointers.receipts("tone", soon())
    assert found == (receipt(pointer(), "ta-2", 3), receipt(pointer(), "ta-1", 2))
    await pointers.remove("tone", soon())
    assert await pointers.receipts("tone", soon()) == ()


@pytest.mark.parametrize("content", [b"{", b'{"served_name": "tone"}', b"\xff", b"[]"])
async def test_a_pointer_that_can_t_be_read_is_told_apart_from_none(
    content: bytes, volume: ModalVolume, app: str
) -> None:
    pointers = Pointers(volume, app)
    await pointers.write(pointer("style"), soon())
    await volume.upload({pointer_path(app, "tone"): content}, soon())
    listed = await pointers.list(soon())
    assert listed.pointers == (pointer("style"),)
    assert listed.unreadable == {name_key("tone")}
    assert await pointers.read("tone", soon()) is None
    await pointers.write(pointer("tone"), soon())
    assert not (await pointers.list(soon())).unreadable


async def test_a_pointer_under_another_name_s_place_is_not_followed(volume: ModalVolume, app: str) -> None:
    content = pointer("tone").model_dump_json().encode()
    await volume.upload({pointer_path(app, "style"): content}, soon())
    listed = await Pointers(volume, app).list(soon())
    assert listed.pointers == ()
    assert listed.unreadable == {name_key("style")}


async def test_a_receipt_that_can_t_be_read_is_passed_over(volume: ModalVolume, app: str) -> None:
    pointers = Pointers(volume, app)
    await pointers.write_receipt(receipt(pointer(), "ta-1", 1), soon())
    await volume.upload({receipt_path(app, "tone", "ta-2"): b"{"}, soon())
    assert await pointers.receipts("tone", soon()) == (receipt(pointer(), "ta-1", 1),)


async def test_an_outage_is_never_taken_for_no_pointers(volume: ModalVolume, app: str, peer: ModalPeer) -> None:
    pointers = Pointers(volume, app)
    await pointers.write(pointer(), soon())
    peer.fail("VolumeListFiles2", OUT_OF_ORDER)
    with pytest.raises(ModalServiceError) as caught:
        await pointers.list(soon())
    assert caught.value.kind is ModalFault.UNREACHABLE
    peer.clear_failures()
    peer.fail("VolumeGetFile2", OUT_OF_ORDER)
    listed = await pointers.list(soon())
    assert listed.pointers == ()
    assert listed.unreadable == {name_key("tone")}


async def test_a_receipt_of_a_container_that_is_long_gone_is_removed(
    volume: ModalVolume, app: str, peer: ModalPeer
) -> None:
    pointers = Pointers(volume, app)
    for container, hours_ago in (("ta-old", 30), ("ta-recent", 20)):
        await pointers.write_receipt(receipt(pointer(), container, 1), soon())
        written = peer.volume("claas-echo") / receipt_path(app, "tone", container)
        at = time.time() - hours_ago * 3600
        os.utime(written, (at, at))
    await pointers.write_receipt(receipt(pointer(), "ta-new", 2), soon())
    found = await pointers.receipts("tone", soon())
    assert {each.container for each in found} == {"ta-new", "ta-recent"}
