"""A GatewayError as an HTTP answer: in CLaaS's shape, and in OpenAI's on its routes."""

from __future__ import annotations

from pydantic import JsonValue

from claas_gateway.errors import GatewayError

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_CODES = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}


def refusal_headers(error: GatewayError) -> dict[str, str]:
    """Headers of the answer: how to authenticate, and when to try again."""
    headers = {}
    if error.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="claas-gateway"'
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    return headers


def claas_body(error: GatewayError) -> dict[str, JsonValue]:
    """The answer as CLaaS's clients know it."""
    return {"detail": error.detail}


def openai_body(error: GatewayError) -> dict[str, JsonValue]:
    """The answer as OpenAI's clients know it, with CLaaS's `detail` beside it."""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    described: dict[str, JsonValue] = {
        "message": error.detail,
        "type": kind,
        "param": None,
        "code": _CODES.get(error.status),
    }
    return {"error": described, "detail": error.detail}
