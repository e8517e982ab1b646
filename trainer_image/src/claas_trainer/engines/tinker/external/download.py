"""Files of a checkpoint of external weights, by signed addresses. An address opens its file to everybody, so none is
ever part of a message."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx

from claas_contract.outcome import FailureReason
from claas_trainer.errors import EngineError
from claas_trainer.logs import log
from claas_trainer.store.errors import storage_errors

_TRIES = 4
_PAUSE_SECONDS = 1.0
_MARGIN = timedelta(minutes=1)
_TIMEOUT = httpx.Timeout(30.0, read=60.0)
_NEW_ADDRESS = frozenset({400, 401, 403, 404, 410})
"""Answers by which stores refuse an address whose time is over."""


@dataclass(frozen=True)
class SignedFiles:
    """Addresses of a checkpoint's files, by path within the checkpoint, and when they end."""

    urls: Mapping[str, str]
    expires: datetime


Sign = Callable[[], Awaitable[SignedFiles]]


class Download:
    """Fetches files of one checkpoint; addresses that are about to end are asked for again."""

    def __init__(self, sign: Sign, where: str, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """`where`: the checkpoint, for messages."""
        self._sign = sign
        self._where = where
        self._now = now
        self._signed: SignedFiles | None = None

    async def names(self) -> list[str]:
        """Paths of the files within the checkpoint."""
        return sorted((await self._current()).urls)

    async def fetch(self, name: str, destination: Path, most_bytes: int) -> None:
        """Write one file. Raises EngineError: SERVICE_UNREACHABLE if it does not come, INVALID_INPUT if it is larger
        than `most_bytes`; StoreError; and what signing raises."""
        why = ""
        async with httpx.AsyncClient(timeout=_TIMEOUT, follow_redirects=True) as client:
            for attempt in range(_TRIES):
                if attempt:
                    log("download-again", file=name, why=why)
                    await asyncio.sleep(_PAUSE_SECONDS * 2 ** (attempt - 1))
                url = (await self._current()).urls.get(name)
                if url is None:
                    raise self._failed(name, "the service does not list it any more")
                try:
                    async with client.stream("GET", url) as response:
                        if response.is_success:
                            return await self._write(response, name, destination, most_bytes)
                        why = f"HTTP {response.status_code}"
                        if response.status_code in _NEW_ADDRESS:
                            self._signed = None
                # Its text may hold the address, also as a cause.
                except (httpx.HTTPError, httpx.InvalidURL) as error:
                    why = type(error).__name__
        raise self._failed(name, why)

    async def _current(self) -> SignedFiles:
        if self._signed is None or self._now() >= self._signed.expires - _MARGIN:
            self._signed = await self._sign()
        return self._signed

    async def _write(self, response: httpx.Response, name: str, destination: Path, most_bytes: int) -> None:
        written = 0
        with storage_errors(destination), destination.open("wb") as file:
            async for chunk in response.aiter_bytes():
                written += len(chunk)
                if written > most_bytes:
                    raise EngineError(
                        FailureReason.INVALID_INPUT,
                        f"spec.engine.tinker.export: {name} of {self._where} is larger than {most_bytes} bytes, the"
                        " most that an adapter of this rank takes; leave export out",
                    )
                file.write(chunk)

    def _failed(self, name: str, why: str) -> EngineError:
        return EngineError(
            FailureReason.SERVICE_UNREACHABLE,
            f"{name} of {self._where} can't be downloaded: {why}; check that the pod reaches the service's files",
        )
