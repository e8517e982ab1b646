"""Calls of a deployed class, by the real client against the peer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from claas_bounded.waits import Deadline
from claas_modal_client import calls
from claas_modal_client.calls import DeployedClass, Document, cancel, preflight, spawn, take
from claas_modal_client.connection import ModalAccount, ModalConnection, ModalToken
from claas_modal_client.errors import ModalFault, ModalServiceError
from claas_modal_client.sdk import modal
from claas_modal_client.servers import server_url
from claas_modal_client.volume import ModalVolume
from tests.peers.modal.failures import OUT_OF_ORDER
from tests.peers.modal.server import TOKEN_ID, TOKEN_SECRET, ModalPeer

pytestmark = [pytest.mark.contract, pytest.mark.usefixtures("echo_app")]
ECHO = DeployedClass("claas-echo", "Echo")
PICKLING = """
import modal, sys
call = modal.Cls.from_name("claas-echo", "Echo")().trap.spawn({"how": sys.argv[1], "path": sys.argv[2]})
print(call.object_id)
"""


async def ask(connection: ModalConnection, method: str, request: Document, seconds: float = 30.0) -> Document:
    call = await spawn(connection, ECHO, method, request, Deadline.after(20))
    return await take(connection, call, Deadline.after(seconds))


async def test_a_document_goes_in_and_out_as_it_is(connection: ModalConnection) -> None:
    request: Document = {
        "bytes": b"\x00\xff" * 5000,
        "text": "ä\u0000",
        "numbers": [1, -2, 1 << 60, 0.1, True, None],
        "nested": {"a": {"b": []}},
    }
    assert (await ask(connection, "answer", request))["got"] == request


async def test_documents_above_the_inline_limits_go_through_object_storage(connection: ModalConnection) -> None:
    sent = os.urandom(3_000_000)
    assert (await ask(connection, "answer", {"data": sent}))["got"] == {"data": sent}
    assert (await ask(connection, "large", {"bytes": 9_000_000}))["data"] == b"x" * 9_000_000


async def test_a_call_is_taken_up_by_another_connection_as_often_as_it_likes(
    connection: ModalConnection, peer: ModalPeer
) -> None:
    call = await spawn(connection, ECHO, "answer", {"a": 1}, Deadline.after(20))
    first = await take(connection, call, Deadline.after(20))
    other = ModalConnection(ModalAccount(ModalToken(TOKEN_ID, TOKEN_SECRET), server_url=peer.url))
    try:
        for _ in range(2):
            assert await take(other, call, Deadline.after(20)) == first
    finally:
        await other.close()


@pytest.mark.parametrize("how", ["return", "raise"])
async def test_what_was_pickled_is_refused_and_never_unpickled(
    how: str, connection: ModalConnection, peer: ModalPeer, tmp_path: Path
) -> None:
    trap = tmp_path / "made-by-unpickling"
    environment = {**os.environ, **peer.environment(), "MODAL_PAYLOAD_FORMAT": "pickle"}
    command = [sys.executable, "-c", PICKLING, how, str(trap)]
    ended = await asyncio.to_thread(
        subprocess.run, command, env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    call = ended.stdout.strip()
    with pytest.raises(ModalServiceError) as caught:
        await take(connection, call, Deadline.after(30))
    assert caught.value.kind is ModalFault.CALL_FAILED
    assert ("not cbor" if how == "return" else "_TrapError") in caught.value.message
    assert not trap.exists()
    # It is a trap: the SDK's own way walks into it.
    client = await connection.client(Deadline.after(20))
    with contextlib.suppress(modal.exception.Error):
        await modal.FunctionCall.from_id(call, client=client).get.aio(timeout=20)
    assert trap.exists()


async def test_a_result_of_another_form_is_refused(connection: ModalConnection) -> None:
    with pytest.raises(ModalServiceError, match="gave a result that this release can't read") as caught:
        await ask(connection, "numbers", {})
    assert caught.value.kind is ModalFault.CALL_FAILED


async def test_of_an_exception_in_the_class_only_its_name_is_told(connection: ModalConnection) -> None:
    with pytest.raises(ModalServiceError, match="its class raised LookupError") as caught:
        await ask(connection, "fail", {"prompt": "a secret sample"})
    assert caught.value.kind is ModalFault.CALL_FAILED
    assert "secret" not in str(caught.value)


async def test_a_method_that_is_not_there_is_not_deployed(connection: ModalConnection) -> None:
    with pytest.raises(ModalServiceError, match="no method `dance`") as caught:
        await ask(connection, "dance", {})
    assert caught.value.kind is ModalFault.NOT_DEPLOYED


async def test_a_call_outlives_its_caller_s_deadline_and_is_taken_later(
    connection: ModalConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "_SLICE_SECONDS", 0.2)
    told: list[float] = []
    call = await spawn(connection, ECHO, "slow", {"seconds": 2.0}, Deadline.after(20))
    began = time.monotonic()
    with pytest.raises(ModalServiceError, match="had none after 1 s") as caught:
        await take(connection, call, Deadline.after(1), told.append)
    assert caught.value.kind is ModalFault.TIMED_OUT
    assert time.monotonic() - began < 3
    assert len(told) > 1
    assert told == sorted(told)
    assert await take(connection, call, Deadline.after(20)) == {"slept": 2.0}


async def test_cancelling_ends_the_container(connection: ModalConnection, peer: ModalPeer) -> None:
    await ask(connection, "answer", {})
    (container,) = peer.containers("claas-echo")
    call = await spawn(connection, ECHO, "slow", {"seconds": 50.0}, Deadline.after(20))
    with pytest.raises(ModalServiceError):
        await take(connection, call, Deadline.after(0.5))
    await cancel(connection, call, Deadline.after(10))
    with pytest.raises(ModalServiceError) as caught:
        await take(connection, call, Deadline.after(20))
    assert caught.value.kind is ModalFault.CALL_CANCELLED
    for _ in range(150):
        if not container.alive:
            break
        await asyncio.sleep(0.1)
    assert not container.alive
    await cancel(connection, call, Deadline.after(10))  # without effect by now


async def test_an_outage_is_outlasted_while_the_call_goes_on(connection: ModalConnection, peer: ModalPeer) -> None:
    call = await spawn(connection, ECHO, "slow", {"seconds": 2.0}, Deadline.after(20))
    waiting = asyncio.create_task(take(connection, call, Deadline.after(60)))
    await asyncio.sleep(0.5)
    peer.cut(3.0)
    assert await waiting == {"slept": 2.0}
    assert len([each for each in peer.calls if each.id == call]) == 1


async def test_an_outage_without_end_is_told_before_the_deadline(
    connection: ModalConnection, peer: ModalPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "_OUTAGE_SECONDS", 1.0)
    call = await spawn(connection, ECHO, "slow", {"seconds": 0.1}, Deadline.after(20))
    rule = peer.fail("FunctionGetOutputs", OUT_OF_ORDER)
    with pytest.raises(ModalServiceError) as caught:
        await take(connection, call, Deadline.after(60))
    assert caught.value.kind is ModalFault.UNREACHABLE
    # The SDK tries four times for each of our tries.
    assert rule.hits > 4
    peer.clear_failures()
    assert await take(connection, call, Deadline.after(20)) == {"slept": 0.1}


async def test_a_look_at_the_class_and_the_server_starts_no_container(
    connection: ModalConnection, peer: ModalPeer
) -> None:
    before = len(peer.containers(alive=False))
    await preflight(connection, ECHO, Deadline.after(20))
    address = await server_url(connection, "claas-echo", "Web", Deadline.after(20))
    assert address == peer.server_url("claas-echo", "Web")
    assert len(peer.containers(alive=False)) == before


async def test_a_container_reads_the_volume_as_itself(connection: ModalConnection, volume: ModalVolume) -> None:
    await volume.upload({"for/containers.txt": b"hello"}, Deadline.after(20))
    assert await ask(connection, "look", {"path": "for/containers.txt"}) == {"content": b"hello"}
