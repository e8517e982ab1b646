"""Views to HTML, by the templates beside this module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from urllib.parse import urlencode

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from claas_gateway.access.keys.sessions import COOKIE
from claas_gateway.dashboard import chart, formats, timeline
from claas_gateway.dashboard.assets import Asset
from claas_gateway.records import BatchState, Evidence, ItemState

ROOT = "/v1/dashboard"
PRIVATE_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Of each page: kept by nobody, framed by nobody, nothing loaded from elsewhere, nothing inline."""
FRAGMENT_HEADER = "X-Claas-Fragment"
"""A request with it gets the page's content alone: the page's script asks so."""
THEME_COOKIE = "claas-theme"
_THEMES = ("light", "dark")


class Pages:
    """Renders pages."""

    def __init__(self, assets: Mapping[str, Asset], clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._templates = Environment(
            loader=FileSystemLoader(Path(__file__).parent / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {
            "utc": formats.utc,
            "machine_time": formats.machine_time,
            "number": formats.number,
            "seconds": formats.seconds,
            "shortened": formats.shortened,
        }
        self._templates.globals |= {
            "assets": assets,
            "chart": chart,
            "phases": timeline.PHASES,
            "ItemState": ItemState,
            "BatchState": BatchState,
            "Evidence": Evidence,
        }

    def render(
        self, request: Request, template: str, values: Mapping[str, object], *, status: int = 200
    ) -> HTMLResponse:
        """A page, or its content alone."""
        root = f"{request.scope.get('root_path', '')}{ROOT}"
        now = self._clock()
        theme = request.cookies.get(THEME_COOKIE)
        text = self._templates.get_template(template).render(
            **values,
            root=root,
            now=now,
            ago=lambda at: formats.ago(at, now),
            theme=theme if theme in _THEMES else None,
            signed_in=COOKIE in request.cookies,
            fragment=FRAGMENT_HEADER in request.headers,
            here=lambda **changed: _here(request, changed),
        )
        return HTMLResponse(text, status, headers=PRIVATE_HEADERS)


def _here(request: Request, changed: Mapping[str, object]) -> str:
    """The query of this page with some parameters changed; None takes one out."""
    query = {**request.query_params, **changed}
    return "?" + urlencode({name: str(value) for name, value in query.items() if value not in (None, "")})
