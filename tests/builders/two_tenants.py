"""A whole gateway with two tenants that have everything: adapters, keys, rollouts, feedback, versions. It listens,
and runs in a thread of its own, so that tests may ask it as clients do."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import TypeVar, cast

import yaml
from fastapi import FastAPI
from pydantic import JsonValue

from claas_gateway.access.guard import KeyGuard, key_places
from claas_gateway.access.keys.ring import KeyRing
from claas_gateway.access.rates import Rates
from claas_gateway.app import Application, create_api
from claas_gateway.directory.watching import WatchedDirectory
from claas_gateway.metrics import GatewayMetrics
from claas_gateway.records import ProbeScore, ServiceChange, VersionSeen
from claas_gateway.services import Services
from claas_gateway.settings import Settings
from claas_gateway.store.interface import Store
from claas_gateway.store.sql_store import open_store
from claas_gateway.upstream.connections import new_session
from claas_gateway.upstream.servers import Upstream
from claas_kube.objects.meta import Manifest
from claas_kube.resources import ADAPTERS, DEPLOYMENTS, DISTILL_JOBS, PODS, SECRETS
from tests.builders.api_server import SmallApi, serving_api
from tests.builders.front import listening, vllm_pod
from tests.builders.gateway import gateway_settings
from tests.builders.gateway_records import build_batch, build_item, build_request, build_rollout
from tests.builders.resources import lora_adapter
from tests.simulation.openai_server import OpenAIServer, Script

T = TypeVar("T")
SHARED = "shared"
"""A name that an adapter of each tenant has."""
VERSION = 7


@dataclass
class Tenant:
    """A tenant. Whatever names it or was said by it contains `mark`, but for identifiers that the gateway makes."""

    mark: str
    server: OpenAIServer = field(default_factory=OpenAIServer)

    @property
    def namespace(self) -> str:
        return f"{self.mark}-ns"

    @property
    def coder(self) -> str:
        return f"{self.mark}-coder"

    @property
    def second(self) -> str:
        """An adapter beside it, which the key for the coder does not see."""
        return f"{self.mark}-second"

    @property
    def key(self) -> str:
        """For the whole namespace."""
        return f"{self.mark}-key-of-the-namespace"

    @property
    def coder_key(self) -> str:
        """For the coder alone."""
        return f"{self.mark}-key-of-one-adapter"

    def said(self, what: str, adapter: str) -> str:
        """A private text about an adapter."""
        return f"{self.mark} {what} about {adapter}"

    def identifiers(self, adapter: str) -> list[str]:
        """Names and identifiers of an adapter and of what is stored about it."""
        kinds = ("rollout", "request", "item", "refused", "batch")
        return [adapter, f"{self.mark}/{adapter}", *(f"{kind}-{self.mark}-{adapter}" for kind in kinds)]

    def texts(self, adapter: str) -> list[str]:
        """What was said about an adapter, and by whom."""
        kinds = ("prompt", "answer", "feedback", "message", "tag", "author", "user", "probe")
        return [self.said(kind, adapter) for kind in kinds]

    def secrets(self) -> set[str]:
        """All that no other tenant may be told."""
        told = {self.namespace, self.key, self.coder_key, f"{self.mark}-base", f"{self.mark}-pod", self.mark}
        for adapter in (self.coder, self.second, SHARED):
            told |= {*self.identifiers(adapter), *self.texts(adapter)} - {SHARED}
        return told

    def hidden_from_coder_key(self) -> set[str]:
        """What the key for the coder may not be told of its own tenant."""
        return {*self.identifiers(self.second), *self.texts(self.second), self.key}


@dataclass
class TwoTenants:
    """The gateway, its tenants, and the loop that it runs in."""

    services: Services
    api: FastAPI
    """The routes outside the hot path, to be looked at."""
    small: SmallApi
    url: str
    red: Tenant
    blue: Tenant
    loop: asyncio.AbstractEventLoop

    def run(self, work: Coroutine[None, None, T]) -> T:
        """Run something in the gateway's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)


@contextmanager
def two_tenants(folder: Path) -> Iterator[TwoTenants]:
    """The gateway with its database in `folder`."""
    started, box, failed = threading.Event(), list[TwoTenants](), list[BaseException]()
    stop: list[asyncio.Event] = []

    async def live() -> None:
        stop.append(asyncio.Event())
        async with _opened(folder) as found:
            box.append(found)
            started.set()
            await stop[0].wait()

    def run() -> None:
        try:
            asyncio.run(live())
        except BaseException as error:  # noqa: BLE001  (raised in the test's thread)
            failed.append(error)
            started.set()

    thread = threading.Thread(target=run, name="gateway")
    thread.start()
    assert started.wait(60)
    if failed:
        raise failed[0]
    try:
        yield box[0]
    finally:
        box[0].loop.call_soon_threadsafe(stop[0].set)
        thread.join(30)
        if failed:
            raise failed[0]


@asynccontextmanager
async def _opened(folder: Path) -> AsyncIterator[TwoTenants]:
    red, blue = Tenant("redmark"), Tenant("blumark")
    async with AsyncExitStack() as stack:
        small = SmallApi()
        for tenant in (red, blue):
            await _settle(stack, small, tenant)
        api = await stack.enter_async_context(serving_api(small))
        store = await stack.enter_async_context(open_store(f"sqlite+aiosqlite:///{folder}/gateway.db"))
        directory = WatchedDirectory(api, [red.namespace, blue.namespace])
        api.keep_informed(directory)
        stack.push_async_callback(_cancelled, asyncio.create_task(directory.run()))
        await directory.ready()
        http = await stack.enter_async_context(new_session())
        settings = _settings(folder, red, blue)
        ring = KeyRing(api, lambda: key_places(settings, directory), monotonic)
        services = Services(
            settings=settings,
            store=store,
            directory=directory,
            guard=KeyGuard(ring, Rates(0, monotonic), lambda: datetime.now(UTC)),
            api=api,
            http=http,
            upstream=Upstream(http, api, directory),
            metrics=GatewayMetrics(),
            clock=lambda: datetime.now(UTC),
        )
        for tenant in (red, blue):
            for adapter in (tenant.coder, tenant.second, SHARED):
                await _remember(store, tenant, adapter)
        application = Application(services)
        stack.push_async_callback(_cancelled, asyncio.create_task(application.worker.run()))
        stack.push_async_callback(_cancelled, asyncio.create_task(_operate(small)))
        url = await stack.enter_async_context(listening(application))
        routes = create_api(services, application.worker)
        loop = asyncio.get_running_loop()
        await small.until(lambda: all(directory.servers(each.servers) for each in directory.adapters(None)))
        yield TwoTenants(services, routes, small, url, red, blue, loop)


def _settings(folder: Path, red: Tenant, blue: Tenant) -> Settings:
    template = folder / "template.yaml"
    spec = dict(cast(Manifest, lora_adapter("any", blue.namespace, handover="Sleep")["spec"]))
    template.write_text(yaml.safe_dump({"namespace": blue.namespace, "spec": spec}))
    return replace(
        gateway_settings(),
        watch_namespaces=(red.namespace, blue.namespace),
        adapter_template=template,
        feedback_wait_seconds=0.3,
        hold_seconds=0.5,
        largest_body_bytes=100_000,
    )


async def _settle(stack: AsyncExitStack, small: SmallApi, tenant: Tenant) -> None:
    """Adapters, a server and keys of a tenant."""
    base, names = f"{tenant.mark}-base", (tenant.coder, tenant.second, SHARED)
    tenant.server.script = Script(
        answer=tenant.said("answer", "anything"), models=(base, *names), version=f"{tenant.coder}@{VERSION}"
    )
    await stack.enter_async_context(tenant.server.serving())
    pod = vllm_pod(f"{tenant.mark}-pod", tenant.server.host)
    small.put(PODS, tenant.namespace, pod)
    selector: Manifest = {"selector": {"matchLabels": {"app": "vllm"}}}
    small.put(DEPLOYMENTS, tenant.namespace, {"metadata": {"name": "vllm"}, "spec": selector})
    for name in names:
        made = cast(
            Manifest,
            lora_adapter(name, tenant.namespace, serving={"port": tenant.server.port}, handover="Sleep"),
        )
        spec = cast(Manifest, made["spec"])
        model = {**cast(Manifest, spec["model"]), "name": base}
        metadata: Manifest = {"name": name, "uid": f"uid-of-{tenant.mark}-{name}"}
        whole = {**spec, "model": model, "loraId": f"{tenant.mark}/{name}"}
        small.put(ADAPTERS, tenant.namespace, {"metadata": metadata, "spec": whole})
    _secret(small, tenant.namespace, "vllm-control", token="the-control-token")
    _secret(small, tenant.namespace, "claas-gateway-keys", app=tenant.key)
    _secret(small, tenant.namespace, f"{tenant.coder}-claas-gateway-keys", app=tenant.coder_key)


def _secret(small: SmallApi, namespace: str, name: str, **entries: str) -> None:
    data: Manifest = {entry: base64.b64encode(value.encode()).decode() for entry, value in entries.items()}
    small.put(SECRETS, namespace, {"metadata": {"name": name}, "data": data})


async def _remember(store: Store, tenant: Tenant, adapter: str) -> None:
    """Something of each kind that the store keeps."""
    _, _, rollout, request, item, refused, batch = tenant.identifiers(adapter)
    prompt, answer, feedback, message, tag, author, user, probe = tenant.texts(adapter)
    at = datetime.now(UTC)
    namespace = tenant.namespace
    found = build_rollout(
        rollout, namespace=namespace, adapter=adapter, prompt=prompt, answer=answer, created=at, user=user
    )
    await store.rollouts.add([found])
    sent = replace(
        build_request(request, namespace=namespace, key_name="app", key=f"{tenant.mark} idempotent"),
        adapter=adapter,
        lora_id=f"{tenant.mark}/{adapter}",
    )
    items = [
        replace(
            build_item(
                name, request=request, position=position, rollout=rollout, user=user, author=author, created=at
            ),
            namespace=namespace,
            adapter=adapter,
            feedback=feedback,
            correction=feedback,
            tags=(tag,),
        )
        for position, name in enumerate((item, refused))
    ]
    await store.feedback.accept(sent, items)
    formed = replace(build_batch(batch, namespace=namespace, adapter=adapter, created=at), message=message)
    await store.batches.form(formed, [item, refused])
    version = VersionSeen(
        namespace, adapter, VERSION, "digest", at, None, batch, f"uid-of-{batch}", {"loss": 0.5}, "Served"
    )
    await store.history.saw_versions([version])
    await store.history.saw_served(ServiceChange(namespace, adapter, at, VERSION, None))
    await store.history.add_score(ProbeScore(namespace, adapter, VERSION, probe, 0.5, at))


async def _operate(small: SmallApi) -> None:
    """Be the operator: adapters serve at once, and jobs fail for good."""
    while True:
        for path, found in list(small.objects.items()):
            resource = next((each for each in (ADAPTERS, DISTILL_JOBS) if f"/{each.plural}/" in path), None)
            if resource is None or "status" in found:
                continue
            conditions: list[JsonValue] = (
                [_condition("Served", "Serving"), _condition("Ready", "Serving")]
                if resource is ADAPTERS
                else [_condition("Failed", "OutOfMemory")]
            )
            status: Manifest = {"conditions": conditions}
            if resource is DISTILL_JOBS:
                status["phase"] = "Failed"
            namespace = path.split("/namespaces/")[1].split("/")[0]
            small.put(resource, namespace, {**found, "status": status})
        await asyncio.sleep(0.01)


def _condition(kind: str, reason: str) -> Manifest:
    since = "2026-11-27T07:00:00Z"
    return {"type": kind, "status": "True", "reason": reason, "message": "", "lastTransitionTime": since}


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait((task,))
    if not task.cancelled() and task.exception() is not None:
        raise AssertionError("a loop of the gateway ended") from task.exception()
