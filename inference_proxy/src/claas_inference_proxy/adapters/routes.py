"""vLLM's routes for models, adapters, health and metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from pydantic import JsonValue
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from claas_bounded.waits import Deadline
from claas_inference_proxy.adapters.host import READY_ROUTE
from claas_inference_proxy.adapters.loaded import Model, Models
from claas_inference_proxy.bodies import Body, read, read_document
from claas_inference_proxy.metrics import ProxyMetrics
from claas_inference_proxy.responses import answering, json_response

VERSION = "0.1.0"
_LOAD_SECONDS = 50.0
"""Below the time that the companion and `claas_vllm_client` wait."""


class LoadBody(Body):
    """The body of `/v1/load_lora_adapter`."""

    lora_name: str = ""
    lora_path: str = ""


class UnloadBody(Body):
    """The body of `/v1/unload_lora_adapter`."""

    lora_name: str = ""


class AdapterRoutes:
    """What operator, trainer and kubelet ask. `not_ready`: why the proxy is not ready, or None; `served`: versions by
    served name; `context_length`: as far as it is known."""

    def __init__(
        self,
        models: Models,
        metrics: ProxyMetrics,
        not_ready: Callable[[], str | None],
        served: Callable[[], Mapping[str, int]],
        context_length: Callable[[], int | None],
    ) -> None:
        self._models = models
        self._metrics = metrics
        self._not_ready = not_ready
        self._served = served
        self._context_length = context_length
        self._created = int(time.time())

    def routes(self) -> list[Route]:
        """The routes."""
        table = {
            ("GET", "/health"): self._health,
            ("GET", READY_ROUTE): self._ready,
            ("GET", "/version"): self._version,
            ("GET", "/metrics"): self._tell_metrics,
            ("GET", "/v1/models"): self._list,
            ("POST", "/v1/load_lora_adapter"): self._load,
            ("POST", "/v1/unload_lora_adapter"): self._unload,
        }
        return [Route(path, answering(handler, path), methods=[method]) for (method, path), handler in table.items()]

    async def _health(self, _: Request) -> Response:
        return Response()

    async def _ready(self, _: Request) -> Response:
        why = self._not_ready()
        return json_response({"ready": why is None, "why": why}, 200 if why is None else 503)

    async def _version(self, _: Request) -> Response:
        return json_response({"version": VERSION})

    async def _tell_metrics(self, _: Request) -> Response:
        return PlainTextResponse(self._metrics.text(self._served()), media_type="text/plain; version=0.0.4")

    async def _list(self, _: Request) -> Response:
        return json_response({"object": "list", "data": [self._card(model) for model in self._models]})

    async def _load(self, request: Request) -> Response:
        asked = read(LoadBody, read_document(await request.body()))
        await self._models.load(asked.lora_name, asked.lora_path, Deadline.after(_LOAD_SECONDS))
        return PlainTextResponse(f"Success: LoRA adapter '{asked.lora_name}' added successfully.")

    async def _unload(self, request: Request) -> Response:
        asked = read(UnloadBody, read_document(await request.body()))
        self._models.unload(asked.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{asked.lora_name}' removed successfully.")

    def _card(self, model: Model) -> dict[str, JsonValue]:
        permission: dict[str, JsonValue] = {
            "id": f"modelperm-{model.name}",
            "object": "model_permission",
            "created": self._created,
            "allow_create_engine": False,
            "allow_sampling": True,
            "allow_logprobs": True,
            "allow_search_indices": False,
            "allow_view": True,
            "allow_fine_tuning": False,
            "organization": "*",
            "group": None,
            "is_blocking": False,
        }
        return {
            "id": model.name,
            "object": "model",
            "created": self._created,
            "owned_by": "tinker",
            "root": model.path,
            "parent": self._models.base.name if model.is_adapter else None,
            "max_model_len": None if model.is_adapter else self._context_length(),
            "permission": [permission],
        }
