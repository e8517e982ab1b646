"""The edge around all routes outside the hot path, as ASGI middleware.

Nobody passes without a key but to the paths that are named open, so a new route is closed until somebody opens it.
Keys are looked at before a byte of the body is read, and bodies are bounded. What goes wrong unexpectedly is answered
with 500, and logged by type and place alone: messages of exceptions may quote what clients sent.
"""

from __future__ import annotations

import json
import logging
import traceback
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from claas_gateway.access.bodies import read_body
from claas_gateway.access.dependency import CALLER
from claas_gateway.access.guard import Guard
from claas_gateway.access.refusals import claas_body, openai_body, refusal_headers
from claas_gateway.access.sign_in import HOME, SIGN_IN, SIGN_OUT, STYLES, sign_in_page
from claas_gateway.errors import GatewayError, Unauthenticated

PAGES = HOME
"""Below it a session's cookie will do in a key's place, for GET alone: no other site can make a browser change
anything."""
OPEN = frozenset(
    {"/", "/docs", "/health", "/livez", "/openapi.json", "/readyz", "/v1/health", SIGN_IN, SIGN_OUT, *STYLES}
)
"""Paths without keys. What is answered there tells nothing of any tenant."""
OPEN_BODY_BYTES = 16 * 1024
"""Largest body of a request to them."""
OPENAI_PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/models"})
"""Paths whose refusals have OpenAI's shape."""
CONTENT_POLICY = "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
_HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}

_log = logging.getLogger(__name__)


class Edge:
    """Admits requests, bounds bodies, adds headers, and answers what went wrong."""

    def __init__(self, app: ASGIApp, guard: Guard, largest_body_bytes: int) -> None:
        self._app = app
        self._guard = guard
        self._largest = largest_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = False

        async def sent(message: Message) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._admitted(scope, receive, sent)
        except GatewayError as error:
            await refuse(scope, sent, error)
        except ConnectionResetError:
            return
        except Exception as error:  # noqa: BLE001  (logged without its message, which may quote a client)
            _log.error("%s at %s while answering %s", type(error).__name__, _place(error), scope["method"])
            if not began:
                await refuse(scope, sent, GatewayError("internal error; the gateway's log says where"))

    async def _admitted(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        largest = min(self._largest, OPEN_BODY_BYTES)
        if path not in OPEN:
            browsing = scope["method"] in ("GET", "HEAD") and (path == PAGES or path.startswith(f"{PAGES}/"))
            admit = self._guard.admit_browser if browsing else self._guard.admit
            scope[CALLER] = await admit(scope["headers"])
            largest = self._largest
        body = await read_body(scope, receive, largest)
        told = False

        async def replay() -> Message:
            nonlocal told
            if told:
                return await receive()
            told = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)


def _place(error: Exception) -> str:
    """Where our own code was when it happened."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "claas_gateway" in Path(frame.filename).parts] or frames
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"


async def refuse(scope: Scope, send: Send, error: GatewayError) -> None:
    """Answer a request with an error, in the shape that its path has. A browser that asks for a page without a key
    gets the form to sign in."""
    path, headers = scope["path"], refusal_headers(error)
    page = (
        scope["method"] == "GET" and path.startswith(PAGES) and "text/html" in Headers(scope=scope).get("accept", "")
    )
    if page and isinstance(error, Unauthenticated):
        kind, body = "text/html; charset=utf-8", sign_in_page().encode()
    else:
        kind = "application/json"
        body = json.dumps(openai_body(error) if path in OPENAI_PATHS else claas_body(error)).encode()
    headers |= {"Content-Type": kind, "Content-Length": str(len(body))}
    raw = [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
