"""The pages below /v1/dashboard."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import HTMLResponse, StreamingResponse
from fastapi.routing import APIRoute
from pydantic import BeforeValidator, Field

from claas_gateway.access.callers import Caller
from claas_gateway.access.dependency import caller_of
from claas_gateway.dashboard.assets import load_assets
from claas_gateway.dashboard.live import LiveUpdates
from claas_gateway.dashboard.pages import PRIVATE_HEADERS, ROOT, Pages
from claas_gateway.dashboard.reader import DashboardReader
from claas_gateway.errors import NotFound
from claas_gateway.records import ItemState
from claas_gateway.services import Services
from claas_gateway.store.interface import ItemFilter

_FOREVER = "public, max-age=31536000, immutable"


def _without_empty(value: object) -> object:
    """A form sends empty fields too."""
    return None if value == "" else value


Admitted = Annotated[Caller, Depends(caller_of)]
PageNumber = Annotated[int, Query(ge=1, le=1_000_000, description="Page, from 1.")]
PerPage = Annotated[int, Query(ge=1, le=100, description="Items on a page.")]
Bound = Annotated[Annotated[float, Field(allow_inf_nan=False)] | None, BeforeValidator(_without_empty), Query()]
OneState = Annotated[ItemState | None, BeforeValidator(_without_empty), Query()]
OneTag = Annotated[Annotated[str, Field(max_length=200)] | None, BeforeValidator(_without_empty), Query()]


def router(services: Services) -> APIRouter:
    """The routes."""
    assets = load_assets()
    pages = Pages(assets, services.clock)
    reader = DashboardReader(services.store, services.directory, services.clock)
    live = LiveUpdates(reader.overview, reader.forget, services.directory)
    services.at_stop.append(live.stop)

    class PageRoute(APIRoute):
        """A route whose "not found" is a page."""

        def get_route_handler(self) -> Callable[[Request], Coroutine[object, object, Response]]:
            handle = super().get_route_handler()

            async def answer(request: Request) -> Response:
                try:
                    return await handle(request)
                except NotFound as error:
                    return pages.render(request, "not_found.html", {"detail": error.detail}, status=404)

            return answer

    routes = APIRouter(tags=["dashboard"], default_response_class=HTMLResponse, route_class=PageRoute)

    @routes.get(ROOT, summary="All adapters, and recent feedback")
    async def home(request: Request, caller: Admitted, page: PageNumber = 1, per_page: PerPage = 20) -> Response:
        view = await reader.home(caller, page, per_page)
        return pages.render(request, "home.html", {"view": view})

    @routes.get(f"{ROOT}/adapters/{{namespace}}/{{name}}", summary="One adapter: its versions, batches and feedback")
    async def adapter(
        request: Request,
        caller: Admitted,
        namespace: str,
        name: str,
        page: PageNumber = 1,
        per_page: PerPage = 20,
        state: OneState = None,
        tag: OneTag = None,
        lowest_rating: Bound = None,
        highest_rating: Bound = None,
        versions: Literal["recent", "all"] = "recent",
    ) -> Response:
        only = ItemFilter(state, tag, lowest_rating, highest_rating)
        view = await reader.adapter(caller, namespace, name, page, per_page, only, versions == "all")
        return pages.render(request, "adapter.html", {"view": view})

    @routes.get(f"{ROOT}/adapters/{{namespace}}/{{name}}/versions/{{number}}", summary="One version")
    async def version(request: Request, caller: Admitted, namespace: str, name: str, number: int) -> Response:
        view = await reader.version(caller, namespace, name, number)
        return pages.render(request, "version.html", {"view": view})

    @routes.get(f"{ROOT}/batches/{{batch_id}}", summary="One batch: its job's phases and its items")
    async def batch(request: Request, caller: Admitted, batch_id: str) -> Response:
        return pages.render(request, "batch.html", {"view": await reader.batch(caller, batch_id)})

    @routes.get(f"{ROOT}/items/{{item_id}}", summary="One item: before, feedback, after")
    async def item(request: Request, caller: Admitted, item_id: str) -> Response:
        return pages.render(request, "item.html", {"view": await reader.item(caller, item_id)})

    @routes.get(f"{ROOT}/events", summary="What changes, as an event stream", response_class=StreamingResponse)
    async def events(caller: Admitted, namespace: str | None = None, adapter: str | None = None) -> StreamingResponse:
        only = (namespace, adapter) if namespace is not None and adapter is not None else None
        return StreamingResponse(
            live.events(caller, only),
            media_type="text/event-stream",
            headers={**PRIVATE_HEADERS, "X-Accel-Buffering": "no"},
        )

    @routes.get(f"{ROOT}/static/{{name}}", summary="Stylesheet, script and icon", include_in_schema=False)
    async def static(name: str) -> Response:
        found = assets.get(name)
        if found is None:
            return Response(status_code=404)
        return Response(
            found.content,
            media_type=found.media_type,
            headers={"Cache-Control": _FOREVER, "X-Content-Type-Options": "nosniff"},
        )

    return routes
