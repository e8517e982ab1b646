"""A gateway in process: the real directory and upstream, over a small API server and scripted vLLM servers."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import cast

import uvicorn
from pydantic import JsonValue

from claas_gateway.access.guard import OpenGuard
from claas_gateway.directory.watching import WatchedDirectory
from claas_gateway.metrics import GatewayMetrics
from claas_gateway.records import Rollout
from claas_gateway.services import Services
from claas_gateway.settings import Settings
from claas_gateway.store.interface import Store
from claas_gateway.upstream.connections import new_session
from claas_gateway.upstream.servers import Upstream
from claas_kube.objects.meta import Manifest
from claas_kube.resources import ADAPTERS, DEPLOYMENTS, LEASES, PODS, SECRETS
from tests.builders.api_server import SmallApi, serving_api
from tests.builders.resources import lora_adapter
from tests.simulation.openai_server import OpenAIServer

NAMESPACE = "team"
ADAPTER = "coder"
BASE = "base"
DEPLOYMENT = "vllm"
TOKEN = "the-control-token"
_LABELS = {"app": DEPLOYMENT}


def settings(**changed: str) -> Settings:
    """Settings for tests; `changed` are environment variables without the prefix."""
    variables = {"KEYS": "off", "DATABASE_URL": "sqlite+aiosqlite://", **changed}
    return Settings.from_environment({f"CLAAS_GATEWAY_{name}": value for name, value in variables.items()})


@dataclass
class KeptRollouts:
    """A store of rollouts in memory. `fails`: it refuses; `waits` holds it up."""

    kept: list[Rollout] = field(default_factory=list)
    fails: bool = False
    waits: asyncio.Event | None = None

    @property
    def rollouts(self) -> KeptRollouts:
        return self

    async def add(self, rollouts: Sequence[Rollout]) -> None:
        if self.waits is not None:
            await self.waits.wait()
        if self.fails:
            raise OSError("the disk is full")
        self.kept += rollouts


@dataclass
class Front:
    """A gateway, and what is around it."""

    services: Services
    small: SmallApi
    store: KeptRollouts
    base: str = BASE
    """The base model's name."""

    def pod(self, name: str, server: OpenAIServer, *, ready: bool = True) -> None:
        """Have a vLLM pod; all servers share a port, each has a loopback address of its own."""
        self.small.put(PODS, NAMESPACE, vllm_pod(name, server.host, ready=ready))

    async def grant(self, *pods: str, handover: str = "Sleep") -> None:
        """Grant a step that may put these pods to sleep; none: nobody holds the Lease."""
        annotations: dict[str, JsonValue] = {"claas.dev/deployment": DEPLOYMENT}
        if pods:
            named = ",".join(f'{{"name":"{pod}","uid":"uid-of-{pod}","url":"http://x"}}' for pod in pods)
            annotations["claas.dev/grant"] = f'{{"pods":[{named}],"handover":"{handover}"}}'
        labels = {"claas.dev/lease": "serving", "app.kubernetes.io/managed-by": "claas-operator"}
        lease = {
            "metadata": {"name": "claas-serving-vllm", "labels": labels, "annotations": annotations},
            "spec": {"holderIdentity": "a-job" if pods else ""},
        }
        self.small.put(LEASES, NAMESPACE, cast(Manifest, lease))
        asleep = set(pods) if handover == "Sleep" else set()
        await self.until_servers(lambda servers: {name for name, sleeps in servers.items() if sleeps} == asleep)

    async def until_ready(self, count: int) -> None:
        """Wait until the directory knows so many pods as ready."""
        target = self.services.directory.resolve(self.base, NAMESPACE)
        servers = self.services.directory.servers
        await self.small.until(lambda: sum(each.ready for each in servers(target.servers)) == count)

    async def until_servers(self, holds: object) -> None:
        """Wait until what the directory knows of the pods (name: may sleep) is so."""
        assert callable(holds)
        target = self.services.directory.resolve(self.base, NAMESPACE)
        await self.small.until(
            lambda: holds({each.pod: each.may_sleep for each in self.services.directory.servers(target.servers)})
        )


def vllm_pod(name: str, address: str, *, ready: bool = True) -> Manifest:
    """A vLLM pod."""
    conditions: list[JsonValue] = [{"type": "Ready", "status": str(ready)}]
    return {
        "metadata": {"name": name, "labels": dict(_LABELS)},
        "status": {"phase": "Running", "podIP": address, "conditions": conditions},
    }


def adapter(
    name: str = ADAPTER,
    port: int = 8000,
    *,
    control_secret: str | None = "vllm-control",
    spec: Mapping[str, JsonValue] | None = None,
) -> Manifest:
    """A LoraAdapter served on that port; `spec` has further fields, or others in their place."""
    made = cast(
        Manifest,
        lora_adapter(name, NAMESPACE, serving={"port": port}, control_secret=control_secret, handover="Sleep"),
    )
    given = dict(spec or {})
    if "serving" in given:
        given["serving"] = {"port": port, **cast(Manifest, given["serving"])}
    return {**made, "spec": {**cast(Manifest, made["spec"]), "model": _model(), **given}}


def _model() -> Manifest:
    return {"name": BASE, "source": {"persistentVolumeClaim": {"claimName": "model", "path": "tiny"}}}


def place(
    small: SmallApi,
    addresses: Sequence[str],
    port: int,
    *,
    control_secret: str | None = "vllm-control",
    adapter_spec: Mapping[str, JsonValue] | None = None,
) -> None:
    """Have an adapter, its Deployment with a pod at each address, and the control token."""
    small.put(ADAPTERS, NAMESPACE, adapter(port=port, control_secret=control_secret, spec=adapter_spec))
    selector: Manifest = {"selector": {"matchLabels": dict(_LABELS)}}
    small.put(DEPLOYMENTS, NAMESPACE, {"metadata": {"name": DEPLOYMENT}, "spec": selector})
    token = base64.b64encode(TOKEN.encode()).decode()
    small.put(SECRETS, NAMESPACE, {"metadata": {"name": "vllm-control"}, "data": {"token": token}})
    for number, address in enumerate(addresses):
        small.put(PODS, NAMESPACE, vllm_pod(f"vllm-{number}", address))


@asynccontextmanager
async def front(
    *servers: OpenAIServer,
    control_secret: str | None = "vllm-control",
    adapter_spec: Mapping[str, JsonValue] | None = None,
    base: str = BASE,
    **changed: str,
) -> AsyncIterator[Front]:
    """A gateway before these servers, each in a pod: `vllm-0`, `vllm-1` and so on. `base`: the model's name
    in `adapter_spec`."""
    async with AsyncExitStack() as stack:
        port = 0
        for number, server in enumerate(servers):
            await stack.enter_async_context(server.serving(f"127.0.0.{number + 1}", port))
            port = server.port
        small = SmallApi()
        addresses = [server.host for server in servers]
        place(small, addresses, port or 8000, control_secret=control_secret, adapter_spec=adapter_spec)
        yield await stack.enter_async_context(front_of(small, len(servers), base=base, **changed))


@asynccontextmanager
async def front_of(small: SmallApi, pods: int, *, base: str = BASE, **changed: str) -> AsyncIterator[Front]:
    """A gateway of what that API server has: an adapter whose Deployment has so many pods."""
    async with serving_api(small) as api, new_session() as http:
        directory = WatchedDirectory(api, [NAMESPACE])
        watching = asyncio.create_task(directory.run())
        try:
            await directory.ready()
            kept = KeptRollouts()
            services = Services(
                settings=settings(**changed),
                store=cast(Store, kept),
                directory=directory,
                guard=OpenGuard(),
                api=api,
                http=http,
                upstream=Upstream(http, api, directory),
                metrics=GatewayMetrics(),
                clock=lambda: datetime.now(UTC),
            )
            found = Front(services, small, kept, base=base)
            [one] = directory.adapters(NAMESPACE)
            await small.until(lambda: len(directory.servers(one.servers)) == pods)
            yield found
        finally:
            watching.cancel()
            await asyncio.wait((watching,))


@asynccontextmanager
async def running(application: object) -> AsyncIterator[tuple[uvicorn.Server, str]]:
    """Serve an ASGI application as the gateway is served; gives the server and its URL. Ends when it has stopped."""
    config = uvicorn.Config(
        application,  # type: ignore[arg-type]
        host="127.0.0.1",
        port=0,
        log_level="warning",
        lifespan="off",
        http="httptools",
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server._serve())
    while not server.started:  # noqa: ASYNC110  (uvicorn tells it in no other way)
        await asyncio.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield server, f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await serving


@asynccontextmanager
async def listening(application: object) -> AsyncIterator[str]:
    """The same, gives the URL alone, and stops without waiting for requests."""
    async with running(application) as (server, url):
        try:
            yield url
        finally:
            server.force_exit = True
