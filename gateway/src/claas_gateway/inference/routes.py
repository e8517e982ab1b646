"""The ASGI application of the hot path."""

from __future__ import annotations

import asyncio
import logging
import time

from claas_gateway.errors import Failed, GatewayError, TooLarge
from claas_gateway.inference.exchange import Exchange, passed_on
from claas_gateway.inference.outlet import Outlet, Receive, Scope, Send
from claas_gateway.inference.request import read_request
from claas_gateway.records import RolloutKind
from claas_gateway.services import Services

log = logging.getLogger(__name__)

KINDS = {"/v1/chat/completions": RolloutKind.CHAT, "/v1/completions": RolloutKind.COMPLETION}
PATHS = frozenset(KINDS)
"""The paths that this application answers."""
TICK_SECONDS = 1.0
SILENT_SECONDS = 5.0
"""Silence after which a stream gets a comment."""


class Inference:
    """Answers requests to PATHS."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path = scope["path"]
        outlet = Outlet(send)
        began = time.monotonic()
        try:
            await self._answer(path, scope, receive, outlet)
        except GatewayError as error:
            await outlet.fail(error)
        except Exception as error:  # noqa: BLE001  (whatever it is, the client is answered, and texts never logged)
            log.error("%s failed: %s at %s", path, type(error).__name__, _place(error))
            await outlet.fail(Failed("The gateway failed; its log has more"))
        metrics = self._services.metrics
        metrics.requests.labels(path, str(outlet.status or 499)).inc()
        metrics.inference_seconds.labels(path).observe(time.monotonic() - began)

    async def _answer(self, path: str, scope: Scope, receive: Receive, outlet: Outlet) -> None:
        caller = await self._services.guard.admit(scope["headers"])
        body = await read_body(receive, self._services.settings.largest_body_bytes)
        if body is None:
            return
        asked = read_request(KINDS[path], body)
        target = self._services.directory.resolve(asked.model, caller.namespace, caller.adapter)
        exchange = Exchange(self._services, asked, target, path, outlet)
        work = asyncio.create_task(exchange.run(passed_on(scope["headers"])))
        gone = asyncio.create_task(receive())
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                work.cancel()
                await asyncio.wait((work,))
                await exchange.abandon()
            else:
                work.result()
        finally:
            gone.cancel()
            work.cancel()


async def read_body(receive: Receive, largest: int) -> bytes | None:
    """A request's body; None if the client went away. Raises TooLarge."""
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        body: bytes = message.get("body", b"")
        if len(body) > largest:
            raise TooLarge(f"The body is larger than {largest} bytes")
        return body
    pieces, size = [], 0
    while True:
        if message["type"] != "http.request":
            return None
        piece = message.get("body", b"")
        size += len(piece)
        if size > largest:
            raise TooLarge(f"The body is larger than {largest} bytes")
        pieces.append(piece)
        if not message.get("more_body", False):
            return b"".join(pieces)
        message = await receive()


def _place(error: Exception) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else "?"
