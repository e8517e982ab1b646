"""Requests to a vLLM on Modal: what the platform asks for, and what the front before it answers in vLLM's place."""

from __future__ import annotations

import logging

import aiohttp

from claas_gateway.errors import NotNow
from claas_gateway.upstream.credentials import ServerCredentials

log = logging.getLogger(__name__)

RETRY_SECONDS = 5
"""How long a client is told to wait before it tries again."""
TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=600.0)
"""A container that starts may hold a request up, and a long answer comes all at once; a request that hears nothing
for so long is given up."""
_STARTING = frozenset({502, 503, 504})


class NoAnswer(Exception):  # noqa: N818  (a state of a server)
    """A server can't be reached, or ended the connection before it answered."""


class TokenRefused(NoAnswer):
    """Modal refused the proxy token: it may have been changed lately."""


def proxy_headers(credentials: ServerCredentials) -> dict[str, str]:
    """The headers that Modal asks for. Raises NotNow without the token: nothing but a refusal would come of it."""
    if credentials.proxy_token is None:
        raise NotNow(
            "The proxy token for the model's servers on Modal is missing: spec.serving.modalApp.proxyTokenSecretRef"
            " names its Secret",
            retry_after_seconds=RETRY_SECONDS,
        )
    key, secret = credentials.proxy_token
    return {"Modal-Key": key, "Modal-Secret": secret}


def check(server: str, status: int, content_type: str) -> None:
    """Look at the beginning of an answer of the server of that name. What vLLM answers is JSON or a success, and
    passes.

    Raises NoAnswer while no container is there yet, TokenRefused, and NotNow for all else that Modal answers itself:
    it is nothing that the client has done, and may name what is the owner's business.
    """
    if status in _STARTING:
        raise NoAnswer(f"HTTP {status}")
    if status == 401 or (status == 403 and not _is_json(content_type)):
        raise TokenRefused(f"HTTP {status}")
    if 300 <= status < 400 or (status >= 400 and not _is_json(content_type)):
        log.warning("%s: Modal itself answers HTTP %d", server, status)
        raise NotNow(
            f"Modal answers HTTP {status} in place of the model's servers; the adapter's conditions may say why",
            retry_after_seconds=RETRY_SECONDS,
        )


def _is_json(content_type: str) -> bool:
    return content_type.endswith("json")
