"""The API keys of all Secrets, read by `get` and kept for seconds, so that a rotated key needs no restart.

A key that is known is looked for in its own Secret, read again when that was read more than FRESH_SECONDS ago. An
unknown key causes one look at all Secrets, at most every SEARCH_SECONDS. While the API server is away, known keys go
on for KNOWN_SECONDS since their Secret was read last, and unknown keys are answered "not now" rather than "unknown".
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, cast

from claas_gateway.access.keys.secret_keys import ApiKey, KeyPlace, keys_of
from claas_gateway.errors import NotNow, Unauthenticated
from claas_kube.errors import ApiError, Forbidden
from claas_kube.objects.meta import Manifest
from claas_kube.resources import SECRETS, Resource

FRESH_SECONDS = 15.0
"""How long a Secret that was read counts as it was."""
SEARCH_SECONDS = 5.0
"""Least time between two looks at all Secrets for an unknown key; ten times a look's own time, if that is more."""
KNOWN_SECONDS = 600.0
"""How long a known key goes on without a look at its Secret, while the API server does not answer."""
_READ_SECONDS = 5.0
"""Longest read of one Secret."""
_PATIENCE_SECONDS = 1.0
"""How long a request with a known key waits for its Secret to be read again."""
_REPEAT_SECONDS = 5.0
"""Time between two tries to read a Secret again."""
_AT_ONCE = 16
"""Secrets read at a time."""

_log = logging.getLogger(__name__)


class SecretReader(Protocol):
    """Reads objects; the Api does."""

    async def get(self, resource: Resource, namespace: str, name: str) -> Manifest | None:
        """One object; None if it does not exist."""
        ...


@dataclass(frozen=True, slots=True)
class _Held:
    """What a Secret held when it was read last; `read_at` None: it was never read."""

    keys: tuple[ApiKey, ...] = ()
    faults: tuple[str, ...] = ()
    read_at: float | None = None
    tried_at: float = 0.0


class KeyRing:
    """Finds keys by their digest or handle. `places` are the Secrets that may hold keys at the moment; None means
    that they are not known yet."""

    def __init__(
        self,
        secrets: SecretReader,
        places: Callable[[], Sequence[KeyPlace] | None],
        clock: Callable[[], float],
    ) -> None:
        self._secrets = secrets
        self._places = places
        self._clock = clock
        self._held: dict[KeyPlace, _Held] = {}
        self._found: dict[bytes, list[ApiKey]] = {}
        self._reads: dict[KeyPlace, asyncio.Task[None]] = {}
        self._search: asyncio.Task[None] | None = None
        self._next_search: float | None = None
        self._complete = False
        """Whether the last look read every Secret."""

    async def find(self, fingerprint: bytes) -> ApiKey:
        """The key with that digest or handle. Raises Unauthenticated if there is none, and NotNow if that can't be
        said because the API server does not answer."""
        key = self._known(fingerprint)
        if key is not None:
            await self._refresh(key.place)
            key = self._known(fingerprint)
            if key is not None:
                if self._age(key.place) <= KNOWN_SECONDS:
                    return key
                raise _unreadable()
        await self._search_all()
        key = self._known(fingerprint)
        if key is not None:
            return key
        if not self._complete:
            raise _unreadable()
        raise Unauthenticated("unknown API key")

    def _known(self, fingerprint: bytes) -> ApiKey | None:
        keys = self._found.get(fingerprint, [])
        if len(keys) != 1:
            return None
        key = keys[0]
        same = hmac.compare_digest(fingerprint, key.digest) or hmac.compare_digest(fingerprint, key.handle)
        return key if same else None

    async def _refresh(self, place: KeyPlace) -> None:
        held, now = self._held[place], self._clock()
        if self._age(place) <= FRESH_SECONDS:
            return
        if held.tried_at + _REPEAT_SECONDS > now and place not in self._reads:
            return
        await asyncio.wait({self._reading(place)}, timeout=_PATIENCE_SECONDS)

    def _reading(self, place: KeyPlace) -> asyncio.Task[None]:
        """The only read of a Secret at a time; requests that give up don't end it."""
        task = self._reads.get(place)
        if task is None:
            task = self._reads[place] = asyncio.create_task(self._read(place))
            task.add_done_callback(lambda done: self._reads.pop(place, None))
        return task

    async def _search_all(self) -> None:
        if self._search is None:
            if self._next_search is not None and self._clock() < self._next_search:
                return
            self._search = asyncio.create_task(self._look_everywhere())
            self._search.add_done_callback(self._searched)
        await asyncio.wait({self._search})

    def _searched(self, task: asyncio.Task[None]) -> None:
        self._search = None
        if not task.cancelled() and task.exception() is not None:
            self._complete = False
            _log.error("a look at the Secrets with API keys failed: %s", type(task.exception()).__name__)

    async def _look_everywhere(self) -> None:
        began = self._clock()
        places = self._places()
        gate = asyncio.Semaphore(_AT_ONCE)
        unread: list[KeyPlace] = []

        async def read(place: KeyPlace) -> None:
            async with gate:
                if not unread:
                    await self._reading(place)
                if self._age(place) > SEARCH_SECONDS + self._clock() - began:
                    unread.append(place)

        wanted = [place for place in dict.fromkeys(places or ()) if self._age(place) > SEARCH_SECONDS]
        await asyncio.gather(*(read(place) for place in wanted))
        if places is not None:
            for gone in self._held.keys() - set(places):
                del self._held[gone]
            self._index()
        self._complete = places is not None and not unread
        ended = self._clock()
        self._next_search = ended + max(SEARCH_SECONDS, 10 * (ended - began))

    def _age(self, place: KeyPlace) -> float:
        held = self._held.get(place)
        return float("inf") if held is None or held.read_at is None else self._clock() - held.read_at

    async def _read(self, place: KeyPlace) -> None:
        before = self._held.get(place, _Held())
        try:
            async with asyncio.timeout(_READ_SECONDS):
                found = await self._secrets.get(SECRETS, place.namespace, place.secret)
        except Forbidden as error:
            faults: tuple[str, ...] = (f"Secret {place} can't be read, and its keys are not accepted: {error}",)
            after = _Held(faults=faults, read_at=self._clock(), tried_at=self._clock())
        except (ApiError, TimeoutError) as error:
            _log.warning("Secret %s could not be read: %s", place, error if str(error) else type(error).__name__)
            self._held[place] = replace(before, tried_at=self._clock())
            return
        else:
            data = cast(Mapping[str, str], (found or {}).get("data") or {})
            keys, faults = keys_of(place, data)
            after = _Held(keys, faults, read_at=self._clock(), tried_at=self._clock())
        self._held[place] = after
        for fault in after.faults:
            if fault not in before.faults:
                _log.error("%s", fault)
        if after.keys != before.keys:
            self._index()

    def _index(self) -> None:
        found: dict[bytes, list[ApiKey]] = {}
        for place in sorted(self._held, key=str):
            for key in self._held[place].keys:
                twins = found.setdefault(key.digest, [])
                if any(twin.place == place for twin in twins):
                    continue
                twins.append(key)
                found[key.handle] = twins
        for fingerprint, twins in found.items():
            # Each list is found by digest and by handle.
            first = fingerprint == twins[0].digest
            if first and len(twins) > 1 and self._found.get(twins[0].digest) != twins:
                _log.error(
                    "the same API key is in several Secrets and is accepted for none: %s",
                    ", ".join(f"entry {key.caller.key_name} of {key.place}" for key in twins),
                )
        self._found = found


def _unreadable() -> NotNow:
    return NotNow("API keys can't be read at the moment; try again", retry_after_seconds=5)
