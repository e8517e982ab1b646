"""Every kind of failure, provoked at the peer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest
from grpclib.const import Status

from claas_bounded.waits import Deadline
from claas_modal_client.calls import DeployedClass, preflight, spawn, take
from claas_modal_client.connection import ModalAccount, ModalConnection, ModalToken
from claas_modal_client.errors import ModalFault, ModalServiceError
from claas_modal_client.servers import server_url
from claas_modal_client.volume import ModalVolume
from tests.peers.modal.failures import OUT_OF_ORDER, SPENT, THROTTLED, UNPAID, Cut, Effect, EndCall, Fate, Refuse
from tests.peers.modal.server import TOKEN_ID, TOKEN_SECRET, ModalPeer

pytestmark = [pytest.mark.contract, pytest.mark.usefixtures("echo_app")]
ECHO = DeployedClass("claas-echo", "Echo")
SECONDS = 8.0


async def look_up(connection: ModalConnection) -> None:
    await preflight(connection, ECHO, Deadline.after(SECONDS))


async def call(connection: ModalConnection) -> None:
    begun = await spawn(connection, ECHO, "answer", {}, Deadline.after(SECONDS))
    await take(connection, begun, Deadline.after(SECONDS))


async def read(connection: ModalConnection) -> None:
    await ModalVolume(connection, "claas-echo").read("no-such-file", Deadline.after(SECONDS))


async def look_into(connection: ModalConnection) -> None:
    await ModalVolume(connection, "claas-echo").list("", Deadline.after(SECONDS))


async def write(connection: ModalConnection) -> None:
    await ModalVolume(connection, "claas-echo").upload({"x": b"y"}, Deadline.after(SECONDS), overwrite=True)


async def ask_address(connection: ModalConnection) -> None:
    await server_url(connection, "claas-echo", "Web", Deadline.after(SECONDS))


@dataclass(frozen=True)
class Case:
    at: str
    effect: Effect
    work: Callable[[ModalConnection], Awaitable[None]]
    kind: ModalFault
    says: str = ""


CASES = [
    Case("ClassGet", Refuse(Status.UNAUTHENTICATED, "token revoked"), look_up, ModalFault.CREDENTIALS_REFUSED),
    Case("ClassGet", Refuse(Status.PERMISSION_DENIED, "not for you"), look_up, ModalFault.CREDENTIALS_REFUSED),
    Case("ClassGet", UNPAID, look_up, ModalFault.BILLING_REQUIRED),
    Case("FunctionMap", SPENT, call, ModalFault.BILLING_REQUIRED),
    Case("FunctionMap", UNPAID, call, ModalFault.BILLING_REQUIRED),
    Case("FunctionGetOutputs", SPENT, call, ModalFault.BILLING_REQUIRED),
    Case("FunctionMap", THROTTLED, call, ModalFault.RATE_LIMITED),
    Case("VolumePutFiles2", THROTTLED, write, ModalFault.RATE_LIMITED),
    Case("ClassGet", Refuse(Status.NOT_FOUND, "no such app"), look_up, ModalFault.NOT_DEPLOYED, "modal deploy"),
    Case("FunctionGet", Refuse(Status.NOT_FOUND, "no such app"), ask_address, ModalFault.NOT_DEPLOYED),
    Case("VolumeGetOrCreate", Refuse(Status.NOT_FOUND, "no such volume"), read, ModalFault.NOT_DEPLOYED),
    Case("FunctionMap", EndCall(Fate.LOST), call, ModalFault.CALL_LOST, "lost the container"),
    Case("FunctionMap", EndCall(Fate.EXPIRED), call, ModalFault.CALL_LOST, "no longer"),
    Case("FunctionMap", EndCall(Fate.UNKNOWN), call, ModalFault.CALL_LOST, "did not find it"),
    Case("FunctionMap", EndCall(Fate.TIMED_OUT), call, ModalFault.TIMED_OUT, "limit of the app's deployment"),
    Case("VolumeGetFile2", Refuse(Status.NOT_FOUND, "no file"), read, ModalFault.FILE_MISSING),
    Case("VolumeListFiles2", Refuse(Status.NOT_FOUND, "no folder"), look_into, ModalFault.FILE_MISSING),
    Case("FunctionMap", Refuse(Status.INVALID_ARGUMENT, "too many"), call, ModalFault.REQUEST_REFUSED, "too many"),
    Case("VolumePutFiles2", Refuse(Status.FAILED_PRECONDITION, "busy"), write, ModalFault.UNREACHABLE),
    Case("VolumePutFiles2", Refuse(Status.ALREADY_EXISTS, "there"), write, ModalFault.REQUEST_REFUSED),
    Case("ClassGet", OUT_OF_ORDER, look_up, ModalFault.UNREACHABLE, "temporarily unavailable"),
    Case("ClassGet", Refuse(Status.INTERNAL, "oops"), look_up, ModalFault.UNREACHABLE),
    Case("VolumeListFiles2", OUT_OF_ORDER, look_into, ModalFault.UNREACHABLE),
    Case("ClassGet", Cut(), look_up, ModalFault.UNREACHABLE),
    Case("VolumeListFiles2", Cut(), look_into, ModalFault.UNREACHABLE),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.at}-{case.effect}-{case.work.__name__}")
async def test_a_failure_of_the_platform_is_told_by_what_has_to_be_done(
    case: Case, connection: ModalConnection, peer: ModalPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODAL_MAX_THROTTLE_WAIT", "1")
    await look_up(connection)
    rule = peer.fail(case.at, case.effect)
    began = time.monotonic()
    try:
        with pytest.raises(ModalServiceError) as caught:
            await case.work(connection)
    finally:
        peer.clear_failures()
        if isinstance(case.effect, Cut):
            peer.come_back()
    assert rule.hits
    assert caught.value.kind is case.kind, caught.value
    assert case.says in caught.value.message
    assert TOKEN_SECRET not in str(caught.value)
    assert time.monotonic() - began < SECONDS + 6
    await look_up(connection)


@pytest.mark.parametrize(("token_id", "token_secret"), [("ak-other", TOKEN_SECRET), (TOKEN_ID, "as-revoked-secret")])
async def test_a_wrong_token_is_refused_beside_a_good_one(
    token_id: str, token_secret: str, connection: ModalConnection, peer: ModalPeer
) -> None:
    other = ModalConnection(ModalAccount(ModalToken(token_id, token_secret), server_url=peer.url))
    try:
        for _ in range(2):
            await look_up(connection)
            with pytest.raises(ModalServiceError) as caught:
                await look_up(other)
            assert caught.value.kind is ModalFault.CREDENTIALS_REFUSED
            assert token_secret not in str(caught.value)
    finally:
        await other.close()
    await call(connection)


@pytest.mark.parametrize(
    "deployed", [DeployedClass("claas-nowhere", "Echo"), DeployedClass("claas-echo", "Nobody")], ids=str
)
async def test_what_is_not_deployed_is_named(deployed: DeployedClass, connection: ModalConnection) -> None:
    with pytest.raises(ModalServiceError, match=f"for {deployed}") as caught:
        await preflight(connection, deployed, Deadline.after(SECONDS))
    assert caught.value.kind is ModalFault.NOT_DEPLOYED


async def test_an_environment_that_is_not_there_is_not_deployed(peer: ModalPeer) -> None:
    account = ModalAccount(ModalToken(TOKEN_ID, TOKEN_SECRET), environment="nowhere", server_url=peer.url)
    connection = ModalConnection(account)
    try:
        with pytest.raises(ModalServiceError) as caught:
            await look_up(connection)
    finally:
        await connection.close()
    assert caught.value.kind is ModalFault.NOT_DEPLOYED


async def test_nobody_at_the_address_is_unreachable_by_the_deadline() -> None:
    connection = ModalConnection(ModalAccount(ModalToken(TOKEN_ID, TOKEN_SECRET), server_url="http://127.0.0.1:9"))
    began = time.monotonic()
    with pytest.raises(ModalServiceError) as caught:
        await preflight(connection, ECHO, Deadline.after(1))
    assert caught.value.kind is ModalFault.UNREACHABLE
    await connection.close()
    assert time.monotonic() - began < 3


async def test_closing_ends_although_the_platform_is_gone(peer: ModalPeer) -> None:
    connection = ModalConnection(ModalAccount(ModalToken(TOKEN_ID, TOKEN_SECRET), server_url=peer.url))
    await look_up(connection)
    waiting = asyncio.create_task(call(connection))
    await asyncio.sleep(0.05)
    peer.cut()
    try:
        began = time.monotonic()
        await connection.close()
        assert time.monotonic() - began < 12
    finally:
        peer.come_back()
        waiting.cancel()
        await asyncio.wait({waiting})


async def test_the_first_calls_of_a_connection_may_come_together(peer: ModalPeer) -> None:
    connection = ModalConnection(ModalAccount(ModalToken(TOKEN_ID, TOKEN_SECRET), server_url=peer.url))
    await asyncio.gather(*(look_up(connection) for _ in range(8)))
    await connection.close()


async def test_the_token_is_not_logged_at_the_finest_level(peer: ModalPeer, caplog: pytest.LogCaptureFixture) -> None:
    connection = ModalConnection(ModalAccount(ModalToken(TOKEN_ID, TOKEN_SECRET), server_url=peer.url))
    with caplog.at_level(logging.DEBUG):
        await call(connection)
        await look_into(connection)
        await connection.close()
        logging.getLogger("anybody").debug("heard")
    assert "heard" in caplog.text
    assert TOKEN_SECRET not in caplog.text
    assert TOKEN_ID not in caplog.text


async def test_a_retried_request_is_not_logged(
    connection: ModalConnection, peer: ModalPeer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MODAL_MAX_THROTTLE_WAIT", "5")
    peer.fail("ClassGet", Refuse(Status.RESOURCE_EXHAUSTED, "secret words", retry_after_s=0.1), times=2)
    with caplog.at_level(logging.INFO):
        await look_up(connection)
    assert "secret words" not in caplog.text
