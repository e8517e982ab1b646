"""The whole gateway in process: the real application and store, over a small API server, a scripted vLLM server and a
played operator that ends jobs."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import aiohttp
from pydantic import JsonValue

from claas_gateway.access.guard import OpenGuard
from claas_gateway.adapters.planning import MANAGED_BY, MANAGER
from claas_gateway.app import Application
from claas_gateway.directory.watching import WatchedDirectory
from claas_gateway.metrics import GatewayMetrics
from claas_gateway.services import Services
from claas_gateway.settings import Settings
from claas_gateway.store.interface import Store
from claas_gateway.store.sql_store import open_store
from claas_gateway.upstream.connections import new_session
from claas_gateway.upstream.servers import Upstream
from claas_kube.objects.meta import Manifest
from claas_kube.objects.resources import AdapterObject
from claas_kube.resources import ADAPTERS, DEPLOYMENTS, DISTILL_JOBS, PODS, SECRETS
from tests.builders.api_server import SmallApi, serving_api
from tests.builders.front import NAMESPACE, TOKEN, adapter, listening, settings, vllm_pod
from tests.simulation.openai_server import OpenAIServer

Ending = Callable[[Manifest], Manifest]
"""The status in which a job ends."""
Beginning = Callable[[Manifest], Manifest]
"""The status that a new adapter gets."""
METRICS: Mapping[str, JsonValue] = {
    "loss": 0.5,
    "divergence": 0.4,
    "kl_to_base": 0.1,
    "ratio_mean": 1.25,
    "clipped_fraction": 0.0625,
    "grad_norm": 2.0,
    "tokens": 40.0,
}


def succeeds(number: int = 8) -> Ending:
    """The job makes that version."""
    return lambda job: {
        "phase": "Succeeded",
        "producedVersion": number,
        "metrics": dict(METRICS),
        "timings": {"sleep": 0.5, "load": 0.25, "step": 1.0, "wake": 0.75, "publish": 0.125, "servingGap": 2.5},
        "handover": "Sleep",
        "conditions": [condition("Complete", "Completed")],
    }


def succeeds_by_tinker(number: int = 8) -> Ending:
    """The job makes that version, whose weights the Tinker service keeps, without a pause."""

    def ends(job: Manifest) -> Manifest:
        timings: JsonValue = {"prepare": 0.25, "step": 1.0, "publish": 0.125, "swap": 0.375}
        conditions: JsonValue = [condition("Complete", "Completed"), condition("Served", "InService")]
        metrics: dict[str, JsonValue] = {**METRICS, "step": 5.0, "optimizer_restored": 1.0}
        # The service tells no norm.
        del metrics["grad_norm"]
        ended = {**succeeds(number)(job), "metrics": metrics, "timings": timings, "conditions": conditions}
        return {**ended, "producedWeights": weights(number), "handover": None}

    return ends


def succeeds_by_modal(number: int = 8) -> Ending:
    """The job makes that version on Modal, and a vLLM there serves it, without a pause."""
    address = f"modal://claas-adapters/adapters/uid/{number}-0123456789abcdef-n#{'0' * 64}"
    metrics: JsonValue = {**METRICS, "modal_seconds_start": 4.0, "modal_seconds_step": 1.0}
    return lambda job: {**succeeds_by_tinker(number)(job), "metrics": metrics, "producedWeights": address}


def weights(number: int) -> str:
    """Where the Tinker service keeps a version's weights."""
    return f"tinker://run:train:0/sampler_weights/job-v{number}"


def fails(reason: str = "OutOfMemory", message: str = "it does not fit", **more: JsonValue) -> Ending:
    """The job fails for good."""
    return lambda job: {"phase": "Failed", "conditions": [condition("Failed", reason, message)], **more}


def never(job: Manifest) -> Manifest:
    """The job is being trained on, for ever."""
    return {"phase": "Training"}


def serves(adapter: Manifest) -> Manifest:
    """The adapter is in service."""
    return {"conditions": [condition("Served", "Serving"), condition("Ready", "Serving")]}


def stalls(adapter: Manifest) -> Manifest:
    """The adapter will not come to serve."""
    why = ("StorageNotMounted", "vLLM lacks the claim")
    return {"conditions": [condition("Ready", *why, status="False"), condition("Stalled", *why)]}


def condition(kind: str, reason: str, message: str = "told", *, status: str = "True") -> Manifest:
    """A condition that holds, unless its status is another."""
    since = "2026-11-27T07:00:00Z"
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": since}


@dataclass
class WholeGateway:
    """A gateway that listens, and what is around it. `ending` says how jobs end, `beginning` what becomes of adapters
    that the gateway makes."""

    services: Services
    application: Application
    small: SmallApi
    store: Store
    server: OpenAIServer
    url: str
    http: aiohttp.ClientSession
    ending: Ending = field(default_factory=succeeds)
    beginning: Beginning = serves
    samples: dict[str, list[Manifest]] = field(default_factory=dict)
    """The samples that each job found in its Secret."""

    def jobs(self) -> list[str]:
        """Names of the DistillJobs there are."""
        prefix = DISTILL_JOBS.path(NAMESPACE) + "/"
        return [path.removeprefix(prefix) for path in self.small.objects if path.startswith(prefix)]

    def made(self) -> list[str]:
        """Names of the LoraAdapters that the gateway made."""
        prefix = ADAPTERS.path(NAMESPACE) + "/"
        found = [each for path, each in self.small.objects.items() if path.startswith(prefix)]
        metadata = [cast(dict[str, dict[str, str]], each["metadata"]) for each in found]
        return [str(each["name"]) for each in metadata if each.get("labels", {}).get(MANAGED_BY) == MANAGER]

    def secrets(self) -> list[str]:
        """Names of the Secrets of batches."""
        prefix = SECRETS.path(NAMESPACE) + "/bt-"
        return [path for path in self.small.objects if path.startswith(prefix)]

    def finish(self, name: str) -> None:
        """Be the operator to one job."""
        job = self.small.found(DISTILL_JOBS, NAMESPACE, name)
        secret = self.small.objects.get(SECRETS.path(NAMESPACE, name))
        if secret is not None:
            data = cast(dict[str, str], secret["data"])
            lines = base64.b64decode(data["samples.json"]).decode().splitlines()
            self.samples[name] = [json.loads(line) for line in lines]
        self.small.put(DISTILL_JOBS, NAMESPACE, {**job, "status": self.ending(job)})

    async def operate(self) -> None:
        """Be the operator to each new job and adapter."""
        seen: set[str] = set()
        while True:
            for name in self.made():
                new = self.small.found(ADAPTERS, NAMESPACE, name)
                if "status" not in new:
                    status = {**_address(new, self.server), **self.beginning(new)}
                    self.small.put(ADAPTERS, NAMESPACE, {**new, "status": status})
            for name in self.jobs():
                if name not in seen:
                    seen.add(name)
                    self.finish(name)
            await asyncio.sleep(0.01)

    async def send(
        self, method: str, path: str, body: JsonValue = None, **headers: str
    ) -> tuple[int, Mapping[str, JsonValue], Mapping[str, str]]:
        """A request; status, JSON and headers of the answer."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.http.request(method, self.url + path, json=body, headers=named) as answer:
            document = await answer.json() if "json" in answer.headers.get("Content-Type", "") else {}
            return answer.status, document, answer.headers


@asynccontextmanager
async def whole_gateway(
    folder: Path,
    *,
    names: Mapping[str, Mapping[str, JsonValue]] | None = None,
    server: OpenAIServer | None = None,
    works: bool = True,
    changed: Callable[[Settings], Settings] = lambda settings: settings,
    **variables: str,
) -> AsyncIterator[WholeGateway]:
    """A gateway with its database in `folder`, and LoraAdapters of these names with these further fields of spec.
    `works`: whether its worker runs."""
    scripted = server or OpenAIServer()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(scripted.serving())
        small = SmallApi()
        small.put(PODS, NAMESPACE, vllm_pod("vllm-0", scripted.host))
        served_by(small, "vllm", "vllm-control")
        for name, spec in (names if names is not None else {"coder": {}}).items():
            made = adapter(name, scripted.port, spec=spec)
            found = AdapterObject.model_validate(made)
            small.put(ADAPTERS, NAMESPACE, {**made, "status": _address(made, scripted)})
            if found.control_token is not None:
                served_by(small, found.deployment_name, found.control_token.name)
        api = await stack.enter_async_context(serving_api(small))
        store = await stack.enter_async_context(open_store(f"sqlite+aiosqlite:///{folder}/gateway.db"))
        directory = WatchedDirectory(api, [NAMESPACE])
        api.keep_informed(directory)
        stack.push_async_callback(_cancelled, asyncio.create_task(directory.run()))
        await directory.ready()
        http = await stack.enter_async_context(new_session())
        services = Services(
            settings=changed(replace(settings(**variables), pod_namespace=NAMESPACE)),
            store=store,
            directory=directory,
            guard=OpenGuard(),
            api=api,
            http=http,
            upstream=Upstream(http, api, directory),
            metrics=GatewayMetrics(),
            clock=lambda: datetime.now(UTC),
        )
        application = Application(services)
        if works:
            stack.push_async_callback(_cancelled, asyncio.create_task(application.worker.run()))
        url = await stack.enter_async_context(listening(application))
        client = await stack.enter_async_context(aiohttp.ClientSession())
        whole = WholeGateway(services, application, small, store, scripted, url, client)
        stack.push_async_callback(_cancelled, asyncio.create_task(whole.operate()))
        if names is None or names:
            await small.until(lambda: bool(directory.servers(directory.adapters(None)[0].servers)))
        yield whole


def _address(adapter: Manifest, server: OpenAIServer) -> Manifest:
    """What status tells of servers outside the cluster."""
    outside = AdapterObject.model_validate(adapter).outside_cluster
    return {"servingUrl": server.url} if outside else {}


def served_by(small: SmallApi, deployment: str, secret: str) -> None:
    """Have a Deployment whose pod is the scripted server, and the Secret with its control token."""
    selector: Manifest = {"selector": {"matchLabels": {"app": "vllm"}}}
    small.put(DEPLOYMENTS, NAMESPACE, {"metadata": {"name": deployment}, "spec": selector})
    token = base64.b64encode(TOKEN.encode()).decode()
    small.put(SECRETS, NAMESPACE, {"metadata": {"name": secret}, "data": {"token": token}})


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait((task,))
    if not task.cancelled() and task.exception() is not None:
        raise AssertionError("a loop of the gateway ended") from task.exception()
