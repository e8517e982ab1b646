"""The application: vLLM's routes, with the companion around them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from starlette.applications import Starlette
from starlette.exceptions import HTTPException

from claas_inference_proxy.adapters.host import ProxyHost
from claas_inference_proxy.adapters.keeper import Keeper
from claas_inference_proxy.adapters.loaded import Models
from claas_inference_proxy.adapters.routes import AdapterRoutes
from claas_inference_proxy.generation.answering import Answering
from claas_inference_proxy.generation.routes import GenerationRoutes
from claas_inference_proxy.metrics import ProxyMetrics
from claas_inference_proxy.prompts.tokenizer import Tokenizer
from claas_inference_proxy.responses import no_such_route
from claas_inference_proxy.settings import Settings
from claas_inference_proxy.upstream.service import Service
from claas_tinker_client.connection import Account, Patience
from claas_vllm.companion import Companion


def build_proxy(settings: Settings, tokenizer: Tokenizer) -> Companion:
    """The proxy for one adapter. The companion's settings are read from the environment."""
    patience = Patience(billing=settings.patience_seconds, other=settings.patience_seconds)
    account = Account(settings.key_file, settings.base_url, settings.project, patience)
    service = Service(account, settings.base_model)
    models = Models(service, settings.model_name, settings.model)
    metrics = ProxyMetrics(settings.model_name)
    answers = Answering(service, models, tokenizer, metrics, settings.request_timeout_seconds)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        keeping = asyncio.ensure_future(keeper.run())
        yield
        keeping.cancel()
        with suppress(asyncio.CancelledError):
            await keeping
        await service.close()

    inner = Starlette(lifespan=lifespan, exception_handlers={HTTPException: no_such_route})
    companion = Companion(inner, ProxyHost(settings.model_name))
    keeper = Keeper(settings, companion.names, models, service, tokenizer.encode(settings.probe, special=True), inner)
    inner.routes.extend(
        [
            *GenerationRoutes(answers, models).routes(metrics.responded),
            *AdapterRoutes(
                models,
                metrics,
                keeper.not_ready,
                lambda: {alias.name: alias.version for alias in companion.names.table},
                lambda: answers.context_length,
            ).routes(),
        ]
    )
    return companion
