"""Answers over HTTP, and what becomes of failures."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from claas_inference_proxy.errors import RefusalError, of_service
from claas_tinker_client.errors import TinkerServiceError

logger = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]
_CLIENT_GONE = 499
"""For metrics; nobody reads the answer."""


def json_response(document: Mapping[str, object], status: int = HTTPStatus.OK) -> Response:
    """An answer in JSON."""
    body = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    return Response(body, status, media_type="application/json")


async def no_such_route(_: Request, error: Exception) -> Response:
    """What vLLM says of a route or a method that it does not have."""
    assert isinstance(error, HTTPException)
    response = json_response({"detail": error.detail}, error.status_code)
    response.headers.update(error.headers or {})
    return response


def answering(handler: Handler, route: str, counted: Callable[[str, int], None] | None = None) -> Handler:
    """A handler whose failures are answers: in OpenAI's shape, without a text of the client, which logs don't get
    either."""

    async def answer(request: Request) -> Response:
        response = await _answered(handler, route, request)
        if counted is not None:
            counted(route, response.status_code)
        return response

    return answer


async def _answered(handler: Handler, route: str, request: Request) -> Response:
    try:
        return await handler(request)
    except ClientDisconnect:
        return Response(status_code=_CLIENT_GONE)
    except RefusalError as error:
        return _refused(error)
    except TinkerServiceError as error:
        logger.warning("%s: %s", route, error)
        return _refused(of_service(error))
    except ExceptionGroup as group:
        # Of several prompts; the first failure cancelled the others.
        first = group.exceptions[0]
        if isinstance(first, TinkerServiceError):
            return _refused(of_service(first))
        return _refused(first) if isinstance(first, RefusalError) else _failed(first, route)
    except Exception as error:  # noqa: BLE001 - its message may quote a text
        return _failed(error, route)


def _refused(error: RefusalError) -> Response:
    response = json_response(error.document(), error.status)
    if error.retry_after_seconds is not None:
        response.headers["retry-after"] = str(error.retry_after_seconds)
    return response


def _failed(error: Exception, route: str) -> Response:
    frames = [f"{frame.name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
    logger.error("%s failed: %s at %s", route, type(error).__name__, " < ".join(reversed(frames[-4:])))
    return _refused(
        RefusalError(
            f"the inference proxy failed ({type(error).__name__}); its log has the place",
            status=HTTPStatus.INTERNAL_SERVER_ERROR,
            kind="InternalServerError",
        )
    )
