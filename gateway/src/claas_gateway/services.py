"""What the routes work with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

import aiohttp

from claas_gateway.access.guard import Guard
from claas_gateway.directory.interface import Directory
from claas_gateway.metrics import GatewayMetrics
from claas_gateway.settings import Settings
from claas_gateway.store.interface import Store
from claas_gateway.upstream.servers import Upstream
from claas_kube.api import Api


@dataclass(frozen=True)
class Services:
    """What the routes work with; made once, at the start."""

    settings: Settings
    store: Store
    directory: Directory
    guard: Guard
    api: Api
    http: aiohttp.ClientSession
    """Connections to vLLM, by `upstream.connections.new_session`."""
    upstream: Upstream
    """The vLLM pods, over these connections."""
    metrics: GatewayMetrics
    clock: Callable[[], datetime]
    """The time now, in UTC."""
    checks: dict[str, Callable[[], str | None]] = field(default_factory=dict)
    """What health asks of the gateway's own parts, by their names: None, or what is wrong."""
    at_stop: list[Callable[[], None]] = field(default_factory=list)
    """What is called as soon as the gateway is told to stop: answers that would go on for ever end."""
