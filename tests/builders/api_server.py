"""A small API server in process: objects by their path, as the operator's requests reach them."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from kubernetes.aio import client
from pydantic import JsonValue

from claas_kube.api import Api, OnAnswer
from claas_kube.objects.meta import Manifest
from claas_kube.resources import Resource

Refuse = Callable[[str, str], web.Response | None]
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
Sleep = Callable[[float], Awaitable[None]]
_LARGEST_BODY_BYTES = 3 * 1024 * 1024
"""As the real one."""


def refusal(status: int, message: str, reason: str = "Invalid") -> web.Response:
    """A `metav1.Status`."""
    body = {"kind": "Status", "status": "Failure", "code": status, "reason": reason, "message": message}
    return web.json_response(body, status=status)


CREATED = "2026-11-01T00:00:00Z"
"""When objects were created that do not say."""


@dataclass
class SmallApi:
    """Keeps what is written, and counts what is asked. `refuse` answers in its place where it wants to."""

    refuse: Refuse = lambda method, path: None
    objects: dict[str, Manifest] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    version: int = 0
    events: list[tuple[int, str, str, Manifest]] = field(default_factory=list)
    """What a watch tells: version, type, path, object."""
    forgotten: int = 0
    """A watch from before that version is too old."""
    watchers: set[asyncio.Event] = field(default_factory=set)
    _hung_up: int = 0

    def put(self, resource: Resource, namespace: str, manifest: Manifest) -> Manifest:
        """Have an object, whatever it was."""
        metadata = manifest["metadata"]
        assert isinstance(metadata, dict)
        return self._keep(resource.path(namespace, str(metadata["name"])), manifest)

    def remove(self, resource: Resource, namespace: str, name: str) -> None:
        """Have an object no longer."""
        self._drop(resource.path(namespace, name))

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds, 5 s at most."""
        async with asyncio.timeout(5):
            while not holds():  # noqa: ASYNC110  (what is waited for is no event)
                await asyncio.sleep(0.005)

    def hang_up(self) -> None:
        """End all watches."""
        self._hung_up += 1
        self._wake()

    def found(self, resource: Resource, namespace: str, name: str) -> Manifest:
        """An object that must be there."""
        return self.objects[resource.path(namespace, name)]

    def counted(self) -> Counter[str]:
        """Requests by method and path, since this was last asked."""
        counts = Counter(f"{method} {path}" for method, path in self.asked)
        self.asked.clear()
        return counts

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer a request."""
        path = request.path
        self.asked.append((request.method, path))
        refused = self.refuse(request.method, path)
        if refused is not None:
            return refused
        if request.method == "GET" and "watch" in request.query:
            return await self._watch(request)
        if request.method == "GET":
            return self._read(request)
        body: Manifest = await request.json()
        if request.method == "POST":
            metadata = body["metadata"]
            assert isinstance(metadata, dict)
            if f"{path}/{metadata['name']}" in self.objects:
                return refusal(409, "already exists", "AlreadyExists")
            return web.json_response(self._keep(f"{path}/{metadata['name']}", body), status=201)
        if request.method == "DELETE":
            known = self._drop(path)
            return web.json_response(known) if known else refusal(404, "not found", "NotFound")
        return self._write(path, body, whole=request.method == "PUT" or "apply" in request.headers["Content-Type"])

    def _keep(self, path: str, body: Manifest) -> Manifest:
        metadata = body["metadata"]
        assert isinstance(metadata, dict)
        namespace = path.split("/namespaces/")[1].split("/")[0]
        self.version += 1
        stamped: Manifest = {
            "uid": f"uid-of-{metadata['name']}",
            "creationTimestamp": CREATED,
            "generation": 1,
            **metadata,
            "namespace": namespace,
            "resourceVersion": str(self.version),
        }
        kind = "MODIFIED" if path in self.objects else "ADDED"
        self.objects[path] = {**body, "metadata": stamped}
        self.events.append((self.version, kind, path, self.objects[path]))
        self._wake()
        return self.objects[path]

    def _drop(self, path: str) -> Manifest | None:
        known = self.objects.pop(path, None)
        if known is not None:
            self.version += 1
            metadata = known["metadata"]
            assert isinstance(metadata, dict)
            last: Manifest = {**known, "metadata": {**metadata, "resourceVersion": str(self.version)}}
            self.events.append((self.version, "DELETED", path, last))
            self._wake()
        return known

    def _wake(self) -> None:
        for watcher in self.watchers:
            watcher.set()

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        told = int(request.query["resourceVersion"])
        if told < self.forgotten:
            return refusal(410, "too old resource version", "Expired")
        stream = web.StreamResponse()
        await stream.prepare(request)
        news, hung_up = asyncio.Event(), self._hung_up
        self.watchers.add(news)
        try:
            while hung_up == self._hung_up:
                news.clear()
                for version, kind, path, found in list(self.events):
                    if version > told and _is_in(path, found, request):
                        line = json.dumps({"type": kind, "object": found})
                        await stream.write(line.encode() + b"\n")
                told = self.version
                if hung_up == self._hung_up and not news.is_set():
                    await news.wait()
        finally:
            self.watchers.discard(news)
        return stream

    def _read(self, request: web.Request) -> web.Response:
        path = request.path
        if path in self.objects:
            return web.json_response(self.objects[path])
        if path.count("/") != _collection_depth(path):
            return refusal(404, "not found", "NotFound")
        wanted = [found for key, found in sorted(self.objects.items()) if _is_in(key, found, request)]
        start, limit = int(request.query.get("continue", 0)), int(request.query.get("limit", 0)) or len(wanted) or 1
        page = wanted[start : start + limit]
        more: Manifest = {"resourceVersion": str(self.version)}
        if start + limit < len(wanted):
            more["continue"] = str(start + limit)
        if "PartialObjectMetadataList" in request.headers["Accept"]:
            page = [{"metadata": found["metadata"]} for found in page]
        items: list[JsonValue] = list(page)
        return web.json_response({"metadata": more, "items": items})

    def _write(self, path: str, body: Manifest, *, whole: bool) -> web.Response:
        at = path.removesuffix("/status")
        known = self.objects.get(at)
        if known is None:
            return web.json_response(self._keep(at, body)) if whole else refusal(404, "not found", "NotFound")
        old, new = known["metadata"], body.get("metadata") or {}
        assert isinstance(old, dict)
        assert isinstance(new, dict)
        if new.get("resourceVersion") not in (None, old["resourceVersion"]):
            return refusal(409, "the object has been modified", "Conflict")
        if whole:
            return web.json_response(self._keep(at, {**body, "metadata": {**old, **new}}))
        merged = _merged(known, body)
        assert isinstance(merged, dict)
        return web.json_response(self._keep(at, merged))


def _collection_depth(path: str) -> int:
    """How many slashes a collection's path has."""
    inside = 2 if "/namespaces/" in path else 0
    return (3 if path.startswith("/api/") else 4) + inside


def _is_of(key: str, collection: str) -> bool:
    """Whether an object lies in a collection of all namespaces."""
    prefix, _, plural = collection.rpartition("/")
    return key.startswith(f"{prefix}/namespaces/") and key.split("/")[-2] == plural


def _is_in(key: str, found: Manifest, request: web.Request) -> bool:
    """Whether an object is of the collection that is asked for, and selected."""
    path = request.path
    if not (key.startswith(f"{path}/") or ("/namespaces/" not in path and _is_of(key, path))):
        return False
    name = request.query.get("fieldSelector", "").removeprefix("metadata.name=")
    if "involvedObject" not in name and name not in ("", key.split("/")[-1]):
        return False
    return _selected(found, request.query.get("labelSelector", ""))


def _selected(found: Manifest, selector: str) -> bool:
    metadata = found["metadata"]
    assert isinstance(metadata, dict)
    labels = metadata.get("labels") or {}
    assert isinstance(labels, dict)
    pairs = [pair.partition("=") for pair in selector.split(",") if pair]
    # A key without a value selects what has the label at all.
    return all(labels.get(key) == value if equals else key in labels for key, equals, value in pairs)


def _merged(old: JsonValue, patch: JsonValue) -> JsonValue:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    result = dict(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merged(result.get(key), value)
    return result


async def _no_sleep(seconds: float) -> None:
    return None


@asynccontextmanager
async def api_to(
    answer: Answer, sleep: Sleep = _no_sleep, on_answer: OnAnswer = lambda *_: None
) -> AsyncIterator[Api]:
    """The operator's Api, connected to a server in process that answers all requests so."""
    application = web.Application(client_max_size=_LARGEST_BODY_BYTES)
    application.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        async with client.ApiClient(client.Configuration(host=f"http://{host}:{port}")) as api_client:
            yield Api(api_client, sleep, on_answer)
    finally:
        await runner.cleanup()


@asynccontextmanager
async def serving_api(small: SmallApi) -> AsyncIterator[Api]:
    """The operator's Api, connected to it."""
    async with api_to(small.handle) as api:
        yield api
