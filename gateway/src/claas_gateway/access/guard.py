"""Admits requests: by API key, and by rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Protocol

from claas_gateway.access.callers import EVERYTHING, Caller
from claas_gateway.access.keys.presented import cookie, presented_key
from claas_gateway.access.keys.ring import KeyRing
from claas_gateway.access.keys.secret_keys import ApiKey, KeyPlace, digest_of
from claas_gateway.access.keys.sessions import COOKIE, read_session, session_cookie
from claas_gateway.access.rates import Rates
from claas_gateway.directory.interface import Directory
from claas_gateway.errors import TooMany, Unauthenticated
from claas_gateway.settings import Settings

Headers = Iterable[tuple[bytes, bytes]]
"""Headers as ASGI has them."""


class Guard(Protocol):
    """Admits requests."""

    async def admit(self, headers: Headers) -> Caller:
        """What the caller may do, by the header `Authorization: Bearer` or `X-API-Key`. Raises Unauthenticated,
        TooMany, and NotNow while keys can't be read."""
        ...

    async def admit_browser(self, headers: Headers) -> Caller:
        """The same where a session's cookie is taken in a key's place: for pages that change nothing."""
        ...

    async def sign_in(self, key: str) -> str | None:
        """The value of a session's cookie for a key; None when keys are off. Raises as `admit` does."""
        ...


class OpenGuard:
    """Admits everybody: keys are off."""

    async def admit(self, headers: Headers) -> Caller:
        """Everything."""
        return EVERYTHING

    async def admit_browser(self, headers: Headers) -> Caller:
        """Everything."""
        return EVERYTHING

    async def sign_in(self, key: str) -> str | None:
        """There is nothing to sign in to."""
        return None


class KeyGuard:
    """Admits those who have a key."""

    def __init__(self, ring: KeyRing, rates: Rates, now: Callable[[], datetime]) -> None:
        self._ring = ring
        self._rates = rates
        self._now = now

    async def admit(self, headers: Headers) -> Caller:
        """By a key."""
        key = presented_key(headers)
        if key is None:
            raise Unauthenticated("no API key: send one as `Authorization: Bearer <key>` or `X-API-Key: <key>`")
        return self._counted(await self._ring.find(digest_of(key)))

    async def admit_browser(self, headers: Headers) -> Caller:
        """By a key, else by a session."""
        headers = list(headers)
        if presented_key(headers) is not None:
            return await self.admit(headers)
        session = read_session(cookie(headers, COOKIE) or "")
        if session is None:
            raise Unauthenticated("no API key: sign in, or send one as `Authorization: Bearer <key>`")
        key = await self._ring.find(session.handle)
        if not session.signed_by(key, self._now().timestamp()):
            raise Unauthenticated("the session has ended: sign in again")
        return self._counted(key)

    async def sign_in(self, key: str) -> str | None:
        """A session for that key."""
        found = await self._ring.find(digest_of(key.strip()))
        self._counted(found)
        return session_cookie(found, self._now().timestamp())

    def _counted(self, key: ApiKey) -> Caller:
        wait = self._rates.take(key.digest)
        if wait:
            raise TooMany("this API key makes too many requests; try again later", retry_after_seconds=wait)
        return key.caller


def key_places(settings: Settings, directory: Directory, made_in: str | None = None) -> Sequence[KeyPlace] | None:
    """The Secrets that may hold keys; None until the adapters are known.

    One for each namespace that is watched, or when all are for each that has adapters and for `made_in`, where
    clients make them; and one for each adapter.
    """
    if not directory.listed():
        return None
    adapters = directory.adapters(None)
    used = {adapter.namespace for adapter in adapters} | ({made_in} if made_in else set())
    namespaces = settings.watch_namespaces or sorted(used)
    secret = settings.keys_secret
    return [
        *(KeyPlace(namespace, secret, None) for namespace in namespaces),
        *(KeyPlace(adapter.namespace, f"{adapter.name}-{secret}", adapter.name) for adapter in adapters),
    ]
