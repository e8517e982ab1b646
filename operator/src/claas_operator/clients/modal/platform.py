"""Modal by its own client, and a server there over HTTPS."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from claas_bounded.waits import Deadline
from claas_contract import places
from claas_crds.v1alpha1.trainer_pod import SecretKeyRef
from claas_modal_client.addresses import VolumeAddress
from claas_modal_client.connection import ModalAccount, ModalConnection, ModalToken
from claas_modal_client.errors import ModalFault, ModalServiceError
from claas_modal_client.pointers import Pointer as PointerFile
from claas_modal_client.pointers import PointerProbe, Pointers, Receipt, ReceiptOutcome
from claas_modal_client.servers import server_url
from claas_modal_client.volume import ModalVolume
from claas_operator.clients.modal.asking import ask_version
from claas_operator.clients.modal.service import (
    ConfirmResult,
    LookResult,
    ModalError,
    PointerMovedError,
    RefusedVersionError,
)
from claas_operator.clients.reader import Reader
from claas_operator.plan.modal.pointer import ModalPlace, ModalServer, ServedPointer
from claas_operator.plan.modal.state import ModalTrouble

T = TypeVar("T")

CALL_SECONDS = 60.0
"""Longest time of what is asked of Modal's API at once."""
_TROUBLES = {
    ModalFault.NOT_DEPLOYED: ModalTrouble.NOT_DEPLOYED,
    ModalFault.CREDENTIALS_REFUSED: ModalTrouble.CREDENTIALS_REFUSED,
    ModalFault.BILLING_REQUIRED: ModalTrouble.BILLING_REQUIRED,
}


class ModalPlatform:
    """A connection for each token, opened when it is first needed."""

    def __init__(self, read: Reader, api_url: str | None) -> None:
        self._read = read
        self._api_url = api_url
        self._connections: dict[tuple[str, str, str | None], tuple[ModalToken, ModalConnection]] = {}
        """By namespace and Secret of the token, and the environment."""

    async def look(self, namespace: str, server: ModalServer, served_name: str) -> LookResult:
        """The pointer of a served name, and the server's address."""

        async def asked() -> LookResult:
            deadline = Deadline.after(CALL_SECONDS)
            connection = await self._connection(namespace, server.place)
            url = await server_url(connection, server.place.app, server.server, deadline)
            found = await _pointers(connection, server.place).read(served_name, deadline)
            return LookResult(_from_file(found), url)

        return await _told(asked)

    async def point(self, namespace: str, place: ModalPlace, pointer: ServedPointer) -> None:
        """Write a pointer."""

        async def asked() -> None:
            pointers = _pointers(await self._connection(namespace, place), place)
            await pointers.write(_to_file(pointer), Deadline.after(CALL_SECONDS))

        await _told(asked)

    async def confirm(
        self, namespace: str, server: ModalServer, pointer: ServedPointer, url: str | None
    ) -> ConfirmResult:
        """See whether the version of a pointer answers."""

        async def prepared() -> tuple[str, bool]:
            deadline = Deadline.after(CALL_SECONDS)
            connection = await self._connection(namespace, server.place)
            pointers = _pointers(connection, server.place)
            if url is not None:
                return url, _said(await pointers.receipts(pointer.served_name, deadline), pointer).refused
            # The last try went wrong: perhaps the server is elsewhere now, or somebody has changed the pointer.
            found = _from_file(await pointers.read(pointer.served_name, deadline))
            if found != pointer:
                raise PointerMovedError(found)
            # A container that starts now may take what an earlier one refused.
            return await server_url(connection, server.place.app, server.server, deadline), False

        async def receipts() -> tuple[Receipt, ...]:
            pointers = _pointers(await self._connection(namespace, server.place), server.place)
            return await pointers.receipts(pointer.served_name, Deadline.after(CALL_SECONDS))

        address, refused = await _told(prepared)
        setback: ModalError | None = None
        if not refused:
            try:
                await ask_version(address, pointer, *await self._proxy_token(namespace, server))
            except ModalError as error:
                if error.trouble is not ModalTrouble.NOT_YET:
                    raise
                setback = error
        said = _said(await _told(receipts), pointer)
        if setback is None and said.served:
            return ConfirmResult(address, said.containers)
        if said.refused:
            raise RefusedVersionError(f"a container of the app {server.place.app} refuses it: {said.message}")
        # The header tells a version's number only; an earlier adapter of the name may have had the same.
        lacking = "no container has said that it has loaded the version's files"
        raise setback or ModalError(ModalTrouble.NOT_YET, lacking)

    async def remove(self, namespace: str, place: ModalPlace, served_name: str, adapter_uid: str) -> None:
        """Remove a pointer, unless it is another adapter's or gone."""

        async def asked() -> None:
            deadline = Deadline.after(CALL_SECONDS)
            pointers = _pointers(await self._connection(namespace, place), place)
            found = await pointers.read(served_name, deadline)
            if found is not None and found.adapter_uid == adapter_uid:
                await pointers.remove(served_name, deadline)

        try:
            await _told(asked)
        except ModalError as error:
            if error.trouble is not ModalTrouble.NOT_DEPLOYED:
                raise
            # The Volume is gone, and the pointer with it.

    async def close(self) -> None:
        """Give all connections up."""
        opened = [connection for _, connection in self._connections.values()]
        self._connections.clear()
        for connection in opened:
            await connection.close()

    async def _connection(self, namespace: str, place: ModalPlace) -> ModalConnection:
        """The connection for the token that is in the Secret now; the last one where the Secret is gone."""
        key = (namespace, place.token_secret, place.environment)
        parts = {}
        for name in (places.MODAL_TOKEN_ID, places.MODAL_TOKEN_SECRET):
            reference = SecretKeyRef(name=place.token_secret, key=name)
            found = await self._read.credentials.token(namespace, reference)
            if found is None or found.text is None:
                if (last := self._connections.get(key)) is not None:
                    return last[1]
                why = f"the Secret {place.token_secret} has no usable entry `{name}`"
                raise ModalError(ModalTrouble.CREDENTIALS_REFUSED, why)
            parts[name] = found.text
        token = ModalToken(parts[places.MODAL_TOKEN_ID], parts[places.MODAL_TOKEN_SECRET])
        # Looked up after the Secret was read: calls of many adapters come at once, and share one connection.
        known = self._connections.get(key)
        if known is not None and known[0] == token:
            return known[1]
        connection = ModalConnection(ModalAccount(token, place.environment, self._api_url))
        self._connections[key] = (token, connection)
        if known is not None:
            await known[1].close()
        return connection

    async def _proxy_token(self, namespace: str, server: ModalServer) -> tuple[str, str]:
        texts = []
        for name in (places.MODAL_PROXY_KEY, places.MODAL_PROXY_SECRET):
            found = await self._read.credentials.token(namespace, SecretKeyRef(name=server.proxy_secret, key=name))
            if found is None or found.text is None:
                why = f"the Secret {server.proxy_secret} has no usable entry `{name}`"
                raise ModalError(ModalTrouble.CREDENTIALS_REFUSED, why)
            texts.append(found.text)
        return texts[0], texts[1]


async def _told(asked: Callable[[], Awaitable[T]]) -> T:
    """What was asked; the client's failures as the plans know them."""
    try:
        return await asked()
    except ModalServiceError as error:
        raise ModalError(_TROUBLES.get(error.kind, ModalTrouble.SERVICE_UNREACHABLE), error.message) from None


def _pointers(connection: ModalConnection, place: ModalPlace) -> Pointers:
    return Pointers(ModalVolume(connection, place.volume), place.app)


@dataclass(frozen=True)
class _Said:
    """What the containers say of a version."""

    served: bool = False
    refused: bool = False
    """By the last one that said something, and none has served it."""
    message: str = ""
    containers: int = 1


def _said(receipts: Sequence[Receipt], pointer: ServedPointer) -> _Said:
    found = [each for each in receipts if str(each.weights) == pointer.weights]
    if not found:
        return _Said()
    served = any(each.outcome is ReceiptOutcome.SERVED for each in found)
    latest = found[0]
    return _Said(served, not served, latest.message, latest.max_containers)


def _to_file(pointer: ServedPointer) -> PointerFile:
    return PointerFile(
        served_name=pointer.served_name,
        adapter_uid=pointer.adapter_uid,
        version=pointer.version,
        weights=VolumeAddress.parse(pointer.weights),
        probe=PointerProbe(prompt=pointer.prompt, max_tokens=pointer.max_tokens),
    )


def _from_file(file: PointerFile | None) -> ServedPointer | None:
    if file is None:
        return None
    probe = file.probe or PointerProbe(prompt="", max_tokens=0)
    return ServedPointer(
        file.served_name, file.adapter_uid, file.version, str(file.weights), probe.prompt, probe.max_tokens
    )
