"""Signing in and out of the dashboard: a key, once, for a session's cookie."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from claas_gateway.access.guard import Guard
from claas_gateway.access.keys.sessions import COOKIE, SESSION_SECONDS
from claas_gateway.errors import GatewayError, NotPermitted

HOME = "/v1/dashboard"
SIGN_IN = f"{HOME}/sign-in"
SIGN_OUT = f"{HOME}/sign-out"
STYLES = (f"{HOME}/static/dashboard.css", f"{HOME}/static/icon.svg")
"""What the form looks like: the dashboard's files, which hold nothing private."""


def sign_in_page(wrong: str = "") -> str:
    """The form; `wrong` is one of our own sentences."""
    alert = f'<p role="alert" class="note">{wrong}</p>' if wrong else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Sign in · CLaaS Dashboard</title>
<link rel="icon" type="image/svg+xml" href="{HOME}/static/icon.svg">
<link rel="stylesheet" href="{HOME}/static/dashboard.css">
</head>
<body class="door">
<main>
<h1><img src="{HOME}/static/icon.svg" alt="" width="28" height="28"> CLaaS Dashboard</h1>
{alert}
<form method="post" action="{SIGN_IN}">
<label for="key">API key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus>
<button type="submit">Sign in</button>
</form>
</main>
</body>
</html>
"""


def router(guard: Guard) -> APIRouter:
    """The routes."""
    routes = APIRouter(include_in_schema=False)

    @routes.get(SIGN_IN)
    async def form() -> HTMLResponse:
        return HTMLResponse(sign_in_page())

    @routes.post(SIGN_IN)
    async def sign_in(request: Request) -> Response:
        _from_own_page(request)
        fields = parse_qs((await request.body()).decode("latin-1"))
        try:
            value = await guard.sign_in(fields.get("key", [""])[0])
        except GatewayError as error:
            return HTMLResponse(sign_in_page(_SAID.get(error.status, "Try again later.")), error.status)
        answer = RedirectResponse(HOME, 303)
        if value is not None:
            answer.set_cookie(
                COOKIE,
                value,
                max_age=SESSION_SECONDS,
                path=HOME,
                httponly=True,
                samesite="strict",
                secure=_over_tls(request),
            )
        return answer

    @routes.post(SIGN_OUT)
    async def sign_out(request: Request) -> Response:
        _from_own_page(request)
        answer = RedirectResponse(SIGN_IN, 303)
        answer.delete_cookie(COOKIE, path=HOME, httponly=True, samesite="strict", secure=_over_tls(request))
        return answer

    return routes


_SAID = {401: "This is not a known API key.", 429: "Too many requests with this key. Try again later."}


def _over_tls(request: Request) -> bool:
    return request.url.scheme == "https" or request.headers.get("x-forwarded-proto", "") == "https"


def _from_own_page(request: Request) -> None:
    """No other site may sign a browser in or out."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        foreign = site not in ("same-origin", "none")
    else:
        foreign = origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    if foreign:
        raise NotPermitted("sign in and out on the dashboard's own page")
