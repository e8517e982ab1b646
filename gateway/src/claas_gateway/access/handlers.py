"""What FastAPI answers when a route raises."""

from __future__ import annotations

import json

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import JsonValue

from claas_gateway.access.edge import OPENAI_PATHS
from claas_gateway.access.refusals import claas_body, openai_body, refusal_headers
from claas_gateway.errors import GatewayError


def handle_errors(app: FastAPI) -> None:
    """Answer errors in the shapes that clients know."""

    @app.exception_handler(GatewayError)
    async def refused(request: Request, error: GatewayError) -> JSONResponse:
        body = openai_body(error) if request.scope["path"] in OPENAI_PATHS else claas_body(error)
        return JSONResponse(body, error.status, refusal_headers(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        # JSONResponse can't encode half a surrogate pair, which a client may have put into the name of a field.
        body = json.dumps({"detail": [_fault(each) for each in error.errors()]})
        return Response(body, 422, media_type="application/json")


def _fault(error: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """FastAPI's description of a fault without the input, which may be a private text."""
    return {name: error[name] for name in ("type", "loc", "msg") if name in error}
