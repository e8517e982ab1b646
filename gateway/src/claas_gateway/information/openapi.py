"""The OpenAPI document: what FastAPI knows of its routes, with keys, errors and the hot path added."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, JsonValue
from pydantic.json_schema import models_json_schema

from claas_gateway.access.edge import OPEN
from claas_gateway.information.inference_models import (
    ChatAnswer,
    ChatRequest,
    CompletionAnswer,
    CompletionRequest,
    GatewayRefusal,
    InferenceError,
    ListedModels,
    ScoreAnswer,
    ScoreRequest,
)

METHODS = ("get", "post", "put", "patch", "delete")
_Object = dict[str, JsonValue]
_DESCRIPTION = (
    "OpenAI-compatible inference on adapters that keep learning. Each answer is recorded as a rollout; feedback on it"
    " becomes a training step, and each item of feedback can be followed into the version that learned from it."
)
_REFUSALS = {
    "401": "No API key, or an unknown one.",
    "429": "The key makes too many requests; the header Retry-After says when to try again.",
    "503": "It can't be answered now; the header Retry-After says when to try again.",
}
_SECURITY: JsonValue = [{"bearer": []}, {"apiKey": []}]


@dataclass(frozen=True)
class HotRoute:
    """A route that FastAPI does not serve."""

    path: str
    method: str
    summary: str
    request: type[BaseModel] | None
    answer: type[BaseModel]
    streams: bool = False
    errors: Mapping[str, str] | None = None


_ERRORS = {
    "400": "The request contradicts itself, or vLLM refuses it, such as for a prompt beyond the context length.",
    "404": "No such model, or the key does not see it.",
    "413": "The body is too large.",
    "422": "A value is wrong.",
}
HOT_ROUTES = (
    HotRoute("/v1/chat/completions", "post", "Answer a chat, and record it", ChatRequest, ChatAnswer, True, _ERRORS),
    HotRoute("/v1/completions", "post", "Complete a text", CompletionRequest, CompletionAnswer, True, _ERRORS),
    HotRoute("/v1/models", "get", "List adapters and base models", None, ListedModels),
    HotRoute("/v1/score", "post", "Score a completion", ScoreRequest, ScoreAnswer, False, _ERRORS),
)


def complete_openapi(app: FastAPI) -> None:
    """Make the app describe all routes, the hot path's too."""

    def document() -> dict[str, JsonValue]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _document(app: FastAPI) -> _Object:
    document: _Object = get_openapi(title=app.title, version=app.version, description=_DESCRIPTION, routes=app.routes)
    components = cast(_Object, document.setdefault("components", {}))
    schemas = cast(_Object, components.setdefault("schemas", {}))
    schemas.update(_schemas())
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, as OpenAI's clients send it."},
        "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    paths = cast(dict[str, _Object], document["paths"])
    for route in HOT_ROUTES:
        paths.setdefault(route.path, {})[route.method] = _operation(route)
    hot = {(route.path, route.method) for route in HOT_ROUTES}
    for path, methods in paths.items():
        for method, found in methods.items():
            if method in METHODS and path not in OPEN:
                operation = cast(_Object, found)
                operation["security"] = _SECURITY
                shape = InferenceError if (path, method) in hot else GatewayRefusal
                responses = cast(_Object, operation.setdefault("responses", {}))
                for status, told in _REFUSALS.items():
                    responses.setdefault(status, _answer(told, shape))
    return document


def _schemas() -> _Object:
    models: set[type[BaseModel]] = {GatewayRefusal, InferenceError}
    for route in HOT_ROUTES:
        models |= {model for model in (route.request, route.answer) if model is not None}
    ordered = sorted(models, key=lambda model: model.__name__)
    _, found = models_json_schema(
        [(model, "validation") for model in ordered], ref_template="#/components/schemas/{model}"
    )
    return cast(_Object, found["$defs"])


def _operation(route: HotRoute) -> _Object:
    content: _Object = {"application/json": {"schema": _reference(route.answer)}}
    if route.streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    answer: _Object = {"description": "The answer.", "content": content}
    if route.streams:
        answer["headers"] = {
            "X-Claas-Rollout": {
                "description": "The rollout of the first choice; feedback can name it.",
                "schema": {"type": "string"},
            }
        }
    responses: _Object = {"200": answer}
    for status, told in (route.errors or {}).items():
        responses[status] = _answer(told, InferenceError)
    operation: _Object = {"tags": ["inference"], "summary": route.summary, "responses": responses}
    operation["operationId"] = f"{route.method}_{route.path.strip('/').replace('/', '_')}"
    if route.request is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _reference(route.request)}},
        }
    return operation


def _answer(told: str, shape: type[BaseModel]) -> _Object:
    return {"description": told, "content": {"application/json": {"schema": _reference(shape)}}}


def _reference(model: type[BaseModel]) -> _Object:
    return {"$ref": f"#/components/schemas/{model.__name__}"}
