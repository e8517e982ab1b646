"""The ASGI application: inference goes the short way, everything else through FastAPI."""

from __future__ import annotations

from fastapi import FastAPI
from starlette import types
from starlette.responses import JSONResponse

from claas_gateway.access.edge import OPEN, Edge, refuse
from claas_gateway.access.handlers import handle_errors
from claas_gateway.access.sign_in import router as sign_in
from claas_gateway.adapters.routes import router as adapters
from claas_gateway.adapters.sampler import router as sampler
from claas_gateway.dashboard.routes import router as dashboard
from claas_gateway.errors import NotNow
from claas_gateway.feedback.routes import router as feedback
from claas_gateway.feedback.worker import FeedbackWorker
from claas_gateway.inference.outlet import Receive, Scope
from claas_gateway.inference.routes import PATHS, Inference
from claas_gateway.information.openapi import complete_openapi
from claas_gateway.information.routes import router as information
from claas_gateway.metrics import GatewayMetrics
from claas_gateway.services import Services


def create_api(services: Services, worker: FeedbackWorker) -> FastAPI:
    """The routes outside the hot path, and the OpenAPI document of all."""
    api = FastAPI(title="CLaaS gateway", version="0.1.0", docs_url=None, redoc_url=None)
    handle_errors(api)
    api.include_router(information(services))
    api.include_router(feedback(services, worker))
    api.include_router(adapters(services))
    api.include_router(sampler(services))
    api.include_router(dashboard(services))
    api.include_router(sign_in(services.guard))
    complete_openapi(api)
    return api


class Application:
    """All routes, and the work behind them, which whoever serves the application runs (`worker.run`)."""

    def __init__(self, services: Services) -> None:
        self.worker = FeedbackWorker(services)
        self._inference = Inference(services)
        api = _Counted(create_api(services, self.worker), services.metrics)
        self._others = Edge(api, services.guard, services.settings.largest_body_bytes)
        self._directory = services.directory
        self._at_stop = services.at_stop
        self._ending = False

    async def __call__(self, scope: Scope, receive: Receive, send: types.Send) -> None:
        """One request."""
        path = scope.get("path")
        if scope["type"] == "http" and path not in OPEN and not self._directory.listed():
            # An adapter that is not known yet would be told not to exist.
            await refuse(scope, send, NotNow("the gateway starts: try again", retry_after_seconds=1))
        elif scope["type"] == "http" and path in PATHS:
            await self._inference(scope, receive, send)
        elif path == "/readyz" and self._ending:
            answer = JSONResponse({"ready": False, "reasons": ["the gateway is being stopped"]}, 503)
            await answer(scope, receive, send)
        else:
            await self._others(scope, receive, send)

    def end(self) -> None:
        """Be ready no longer, and end what would go on for long. Answers of models go on to their end."""
        self._ending = True
        for stop in self._at_stop:
            stop()


class _Counted:
    """Counts answers by route, as it is declared, and status."""

    def __init__(self, app: types.ASGIApp, metrics: GatewayMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: types.Scope, receive: types.Receive, send: types.Send) -> None:
        async def counted(message: types.Message) -> None:
            if message["type"] == "http.response.start":
                route = str(getattr(scope.get("route"), "path", "unknown"))
                self._metrics.requests.labels(route, str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, counted)
