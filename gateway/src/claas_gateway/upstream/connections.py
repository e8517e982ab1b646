"""Connections to vLLM."""

from __future__ import annotations

import socket

import aiohttp
from aiohttp.connector import AddrInfoType

CONNECT_SECONDS = 5.0
KEEP_SECONDS = 4.0
"""How long an idle connection is kept: less than vLLM's own five seconds, so that it is seldom closed in use."""
_PROBE_AFTER_SECONDS = 15
_PROBE_EVERY_SECONDS = 5
_PROBES = 4


def new_session() -> aiohttp.ClientSession:
    """Connections without a limit and without a total time-out. A server whose machine is gone is noticed after about
    half a minute of silence."""
    connector = aiohttp.TCPConnector(
        limit=0, keepalive_timeout=KEEP_SECONDS, socket_factory=_socket, enable_cleanup_closed=False
    )
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
    return aiohttp.ClientSession(
        connector=connector,
        timeout=timeout,
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Accept-Encoding"),
        cookie_jar=aiohttp.DummyCookieJar(),
        read_bufsize=2**16,
    )


def _socket(address: AddrInfoType) -> socket.socket:
    family, kind, protocol, _, _ = address
    made = socket.socket(family=family, type=kind, proto=protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_AFTER_SECONDS)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_EVERY_SECONDS)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
    return made
