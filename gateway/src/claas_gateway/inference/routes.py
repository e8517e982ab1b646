"""The ASGI application of the hot path."""

from __future__ import annotations

import logging
import time

from claas_gateway.access.bodies import read_body
from claas_gateway.access.callers import Caller
from claas_gateway.directory.models import Target
from claas_gateway.errors import Failed, GatewayError
from claas_gateway.inference.exchange import Exchange
from claas_gateway.inference.models import list_models
from claas_gateway.inference.outlet import JSON, Headers, Outlet, Receive, Scope, Send
from claas_gateway.inference.request import read_request
from claas_gateway.inference.score import Scoring, read_score
from claas_gateway.inference.supervision import ClientGone, Pace, supervised
from claas_gateway.records import RolloutKind
from claas_gateway.services import Services

log = logging.getLogger(__name__)

MODELS = "/v1/models"
SCORE = "/v1/score"
KINDS = {"/v1/chat/completions": RolloutKind.CHAT, "/v1/completions": RolloutKind.COMPLETION}
PATHS = frozenset({*KINDS, MODELS, SCORE})
"""The paths that this application answers."""
GONE_STATUS = 499
"""Status in metrics of a request whose client left before an answer began."""
_PASSED_ON = frozenset({b"traceparent", b"tracestate", b"x-request-id"})


class Inference:
    """Answers requests to PATHS."""

    def __init__(self, services: Services, pace: Pace | None = None) -> None:
        self._services = services
        self._pace = pace or Pace(hold_seconds=services.settings.hold_seconds)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path, outlet, began = scope["path"], Outlet(send), time.monotonic()
        try:
            await self._answer(path, scope, receive, outlet)
        except GatewayError as error:
            await outlet.fail(error)
        except (ClientGone, ConnectionResetError):
            pass
        except Exception as error:  # noqa: BLE001  (whatever it is, the client is answered, and texts never logged)
            log.error("%s failed: %s at %s", path, type(error).__name__, _place(error))
            await outlet.fail(Failed("The gateway failed; its log says where"))
        metrics = self._services.metrics
        metrics.requests.labels(path, str(outlet.status or GONE_STATUS)).inc()
        metrics.inference_seconds.labels(path).observe(time.monotonic() - began)

    async def _answer(self, path: str, scope: Scope, receive: Receive, outlet: Outlet) -> None:
        services = self._services
        caller = await services.guard.admit(scope["headers"])
        if path == MODELS:
            if scope["method"] in ("GET", "HEAD"):
                await outlet.whole(200, [JSON], list_models(services.directory, caller))
            else:
                await outlet.method_not_allowed(b"GET")
            return
        if scope["method"] != "POST":
            await outlet.method_not_allowed(b"POST")
            return
        body = await read_body(scope, receive, services.settings.largest_body_bytes)
        if path == SCORE:
            await self._score(caller, body, receive, outlet)
        else:
            await self._exchange(path, caller, body, _passed_on(scope["headers"]), receive, outlet)

    async def _exchange(
        self, path: str, caller: Caller, body: bytes, headers: dict[str, str], receive: Receive, outlet: Outlet
    ) -> None:
        services = self._services
        asked = read_request(KINDS[path], body)
        target = services.directory.resolve(asked.model, caller.namespace, caller.adapter)
        exchange = Exchange(services, asked, target, path, outlet, self._hold_seconds(target))
        try:
            await supervised(
                exchange.run(headers),
                receive=receive,
                outlet=outlet,
                tries=exchange.tries,
                comment=exchange.comment if asked.stream else None,
                pace=self._pace,
                metrics=services.metrics,
            )
        except ClientGone:
            await exchange.abandon()
            raise

    async def _score(self, caller: Caller, body: bytes, receive: Receive, outlet: Outlet) -> None:
        services = self._services
        asked = read_score(body)
        target = services.directory.resolve(asked.model, caller.namespace, caller.adapter)
        scoring = Scoring(services, asked, target, outlet, self._hold_seconds(target))
        await supervised(
            scoring.run(),
            receive=receive,
            outlet=outlet,
            tries=scoring.tries,
            comment=None,
            pace=self._pace,
            metrics=services.metrics,
        )

    def _hold_seconds(self, target: Target) -> float:
        outside = target.servers.outside
        return self._services.settings.cold_start_seconds if outside else self._pace.hold_seconds


def _passed_on(headers: Headers) -> dict[str, str]:
    """The client's headers that go on to the server; its key does not."""
    return {name.decode(): value.decode("latin-1") for name, value in headers if name in _PASSED_ON}


def _place(error: Exception) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else "?"
