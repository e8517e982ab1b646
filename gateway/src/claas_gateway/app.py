"""The ASGI application: inference goes the short way, everything else through FastAPI."""

from __future__ import annotations

from fastapi import FastAPI

from claas_gateway.services import Services


def create_api(services: Services) -> FastAPI:
    """The routes outside the hot path, and the OpenAPI document of all."""
    return FastAPI(title="CLaaS gateway", version="0.1.0", docs_url=None, redoc_url=None)
