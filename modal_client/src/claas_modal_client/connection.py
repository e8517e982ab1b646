"""A connection to the Modal platform: every call bounded, every failure one of `errors`."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from claas_bounded.waits import Deadline, wait_until
from claas_modal_client.errors import ModalFault
from claas_modal_client.faults import Missing, fault, service_fault, token_fault
from claas_modal_client.sdk import modal, open_client

T = TypeVar("T")

TOKEN_ID = "token-id"
TOKEN_SECRET = "token-secret"
CLOSE_SECONDS = 10.0
"""Longest time that closing takes."""


@dataclass(frozen=True)
class ModalToken:
    """How the platform knows us."""

    id: str
    secret: str = field(repr=False)

    @classmethod
    def read(cls, folder: Path) -> ModalToken:
        """From the files `token-id` and `token-secret`. Raises ModalServiceError."""
        parts: dict[str, bytes] = {}
        for name in (TOKEN_ID, TOKEN_SECRET):
            try:
                parts[name] = (folder / name).read_bytes()
            except OSError as error:
                raise token_fault(str(folder / name), f"can't be read ({type(error).__name__})") from None
        return cls.parse(parts, str(folder))

    @classmethod
    def parse(cls, parts: dict[str, bytes], place: str) -> ModalToken:
        """From the keys of a Secret. `place` says where it was found. Raises ModalServiceError."""
        texts: dict[str, str] = {}
        for name in (TOKEN_ID, TOKEN_SECRET):
            text = parts.get(name, b"").decode("ascii", "replace").strip()
            # They become headers.
            if not text or not text.isprintable() or not text.isascii():
                raise token_fault(place, f"has no usable entry `{name}`")
            texts[name] = text
        return cls(texts[TOKEN_ID], texts[TOKEN_SECRET])


@dataclass(frozen=True)
class ModalAccount:
    """Where the platform is, and what we work in there."""

    token: ModalToken | None
    """None: we are a container of the platform, which knows us already."""
    environment: str | None = None
    """Name of an environment; None: the workspace's own default."""
    server_url: str | None = None
    """Of the platform's API. None: MODAL_SERVER_URL, else the SDK's own."""


class ModalConnection:
    """The SDK's client for one token, made when first needed. All methods raise ModalServiceError, at their deadline
    at the latest."""

    def __init__(self, account: ModalAccount) -> None:
        self._account = account
        self._client: modal.Client | None = None

    @classmethod
    def container(cls) -> ModalConnection:
        """For use inside a container of the platform: the SDK has a client there."""
        return cls(ModalAccount(None))

    @property
    def environment(self) -> str | None:
        """Name of the environment that names are looked up in."""
        return self._account.environment

    async def client(self, deadline: Deadline) -> modal.Client | None:
        """The SDK's client; None inside a container, where the SDK takes its own."""
        account = self._account
        token = account.token
        if token is None:
            return None
        if self._client is None:
            opened = await self.call(
                "to let us in", lambda: open_client(account.server_url, token.id, token.secret), deadline
            )
            if self._client is not None:
                # Somebody else was faster. Waiting for them instead might outlast this deadline.
                await _close(opened)
                return self._client
            self._client = opened
        return self._client

    async def call(
        self, asked: str, start: Callable[[], Awaitable[T]], deadline: Deadline, missing: Missing = Missing.APP
    ) -> T:
        """The result of what `start` begins. `asked` ends `the Modal platform was asked ...`."""
        began = deadline.clock()
        try:
            return await wait_until(deadline, start())
        except Exception as error:
            if isinstance(error, TimeoutError) and deadline.left() <= 0:
                seconds = deadline.clock() - began
                raise fault(ModalFault.UNREACHABLE, asked, f"had not done it after {seconds:.0f} s") from None
            known = service_fault(error, asked, missing)
            if known is None or known is error:
                raise
            raise known from None

    async def close(self) -> None:
        """Give the connection up. Takes 10 s at most, and raises nothing."""
        client, self._client = self._client, None
        if client is not None:
            await _close(client)


async def _close(client: modal.Client) -> None:
    with contextlib.suppress(TimeoutError, modal.exception.Error, OSError):
        await wait_until(Deadline.after(CLOSE_SECONDS), client.close.aio())
