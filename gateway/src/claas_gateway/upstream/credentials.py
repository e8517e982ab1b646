"""Tokens, API keys and certificates for servers, read from Secrets and ConfigMaps by name."""

from __future__ import annotations

import asyncio
import base64
import logging
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from claas_crds.v1alpha1.engine import SecretReference
from claas_crds.v1alpha1.tls import ServingTls
from claas_crds.v1alpha1.trainer_pod import SecretKeyRef
from claas_gateway.directory.models import ServerGroup
from claas_kube.api import Api
from claas_kube.resources import CONFIG_MAPS, SECRETS

log = logging.getLogger(__name__)

RECENT_SECONDS = 15.0
"""How long what was read is not read again."""
USABLE_SECONDS = 60.0
"""How long what was read is used while it is read again, or can't be."""


@dataclass(frozen=True, slots=True)
class ServerCredentials:
    """Credentials for the servers of a Deployment, or for those outside the cluster."""

    control_token: str | None = field(default=None, repr=False)
    """None: there is none, or it can't be sent."""
    api_key: str | None = field(default=None, repr=False)
    proxy_token: tuple[str, str] | None = field(default=None, repr=False)
    """Key and secret that Modal's proxy asks for; None: there are none, or they can't be sent."""
    tls: ssl.SSLContext | None = None
    """None: public CAs are trusted."""
    server_name: str | None = None
    """DNS name that the certificate is verified against; None: the pod's address."""


_PROXY_KEYS = ("key", "secret")
"""In the Secret with Modal's proxy token."""

_Key = tuple[str, SecretKeyRef | None, SecretKeyRef | None, ServingTls | None, SecretReference | None]


@dataclass(slots=True)
class _Kept:
    since: float
    found: ServerCredentials


class KeptCredentials:
    """Reads credentials. What was read is used at once, and renewed in the background, so requests do not wait."""

    def __init__(self, api: Api, clock: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._clock = clock
        self._kept: dict[_Key, _Kept] = {}
        self._reading: dict[_Key, asyncio.Task[ServerCredentials]] = {}

    async def of(self, group: ServerGroup) -> ServerCredentials:
        """The credentials that a Deployment's servers ask for. Raises ApiError if they can't be read and were not
        lately."""
        serving = group.serving
        proxy = serving.modal_app.proxy_token_secret_ref if serving.modal_app is not None else None
        key = (group.namespace, serving.control_token_secret_ref, serving.api_key_secret_ref, serving.tls, proxy)
        if key[1:] == (None, None, None, None):
            return ServerCredentials()
        kept = self._kept.get(key)
        age = self._clock() - kept.since if kept is not None else 0.0
        if kept is not None and age < RECENT_SECONDS:
            return kept.found
        reading = self._reading.get(key)
        if reading is None:
            reading = asyncio.create_task(self._read(key))
            self._reading[key] = reading
            reading.add_done_callback(lambda task: self._done(key, task))
        if kept is not None and age < USABLE_SECONDS:
            return kept.found
        return await asyncio.shield(reading)

    def forget(self, group: ServerGroup) -> None:
        """A server refused these credentials: read them again."""
        for key in [key for key in self._kept if key[0] == group.namespace]:
            del self._kept[key]

    def _done(self, key: _Key, task: asyncio.Task[ServerCredentials]) -> None:
        self._reading.pop(key, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("credentials for servers in %s could not be read: %s", key[0], error)

    async def _read(self, key: _Key) -> ServerCredentials:
        namespace, token, api_key, tls, proxy = key
        known = self._kept.get(key)
        found = ServerCredentials(
            control_token=await self._token(namespace, token) if token else None,
            api_key=await self._token(namespace, api_key) if api_key else None,
            proxy_token=await self._proxy_token(namespace, proxy) if proxy else None,
            tls=await self._context(namespace, tls) if tls is not None and tls.certificates else None,
            server_name=tls.server_name if tls is not None else None,
        )
        now = self._clock()
        if known is None:
            # What nobody has asked for in a while belongs to adapters that are gone.
            for old in [each for each, kept in self._kept.items() if now - kept.since > 10 * USABLE_SECONDS]:
                del self._kept[old]
        self._kept[key] = _Kept(now, found)
        return found

    async def _token(self, namespace: str, reference: SecretKeyRef) -> str | None:
        (token,) = await self._texts(namespace, reference.name, reference.key)
        return token

    async def _proxy_token(self, namespace: str, reference: SecretReference) -> tuple[str, str] | None:
        key, secret = await self._texts(namespace, reference.name, *_PROXY_KEYS)
        return (key, secret) if key is not None and secret is not None else None

    async def _texts(self, namespace: str, name: str, *keys: str) -> list[str | None]:
        """The values of a Secret's keys, each None if it can't be sent in a header."""
        secret = await self._api.get(SECRETS, namespace, name)
        data = cast(dict[str, str], (secret or {}).get("data") or {})
        found: list[str | None] = []
        for key in keys:
            token = base64.b64decode(data.get(key, "")).strip()
            if not token or any(not 0x20 <= byte <= 0x7E for byte in token):
                log.warning("key %s of Secret %s/%s is no token", key, namespace, name)
                found.append(None)
            else:
                found.append(token.decode("ascii"))
        return found

    async def _context(self, namespace: str, tls: ServingTls) -> ssl.SSLContext:
        """Trusts the named CA alone; nothing at all if it is missing, never public CAs."""
        reference = tls.certificates
        assert reference is not None
        found = await self._api.get(SECRETS if tls.ca_secret_ref else CONFIG_MAPS, namespace, reference.name)
        text = cast(dict[str, str], (found or {}).get("data") or {}).get(reference.key, "")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            context.load_verify_locations(
                cadata=base64.b64decode(text).decode("ascii") if tls.ca_secret_ref else text
            )
        except (ValueError, ssl.SSLError):
            log.warning("key %s of %s/%s holds no certificates", reference.key, namespace, reference.name)
        return context
