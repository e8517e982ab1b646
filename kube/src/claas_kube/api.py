"""Client of the API server; the only module that talks to it.

Objects go in and out as plain data; a missing object is None. Writes are create-exclusive, server-side apply with
one field manager, or a merge patch under a resourceVersion precondition. A request that the server can't answer now
(HTTP 429 or 5xx, or no connection) is retried a few times before it fails as Unavailable.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from enum import StrEnum
from functools import partial
from typing import Protocol, cast

import aiohttp
from kubernetes.aio import client, config

from claas_kube.errors import ApiError, Conflict, Forbidden, Gone, Unavailable
from claas_kube.listing import EVERYTHING, EventType, Page, Selection, WatchEvent, lines
from claas_kube.objects.meta import Manifest
from claas_kube.refusals import refusal_message
from claas_kube.resources import Resource

FIELD_MANAGER = "claas-operator"
REPEAT_SECONDS = (0.5, 1.0, 2.0)
"""Back-off between the tries of a request, in seconds; longer if the server asks for it."""
LONGEST_REPEAT_SECONDS = 30.0
_REQUEST_SECONDS = 30
_WATCH_SECONDS = 300
"""Seconds after which the server ends a watch and the next one continues."""
_SILENT_SECONDS = 150
"""Seconds without data after which a watch's connection counts as lost; the server sends a bookmark each minute."""
_CONNECT_SECONDS = 10
_JSON = "application/json"
_METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_METADATA_ALONE = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"


class Verb(StrEnum):
    """Verbs of the API server; apply is a patch there."""

    GET = "get"
    LIST = "list"
    WATCH = "watch"
    CREATE = "create"
    APPLY = "apply"
    PATCH = "patch"
    UPDATE = "update"
    DELETE = "delete"

    @property
    def method(self) -> str:
        """The HTTP method."""
        return _METHODS[self]


_METHODS = {
    Verb.GET: "GET",
    Verb.LIST: "GET",
    Verb.WATCH: "GET",
    Verb.CREATE: "POST",
    Verb.APPLY: "PATCH",
    Verb.PATCH: "PATCH",
    Verb.UPDATE: "PUT",
    Verb.DELETE: "DELETE",
}

OnAnswer = Callable[[Verb, str, int | None, float], None]
"""Called for each request with verb, resource (with its subresource), HTTP status (None: no answer), and seconds."""


def _ignore(verb: Verb, resource: str, status: int | None, seconds: float) -> None:
    """Nobody counts."""


class Informed(Protocol):
    """Who is told what becomes of writes."""

    async def wrote(self, resource: Resource, found: Manifest) -> None:
        """A write was answered with this object."""

    async def refused(self, resource: Resource, namespace: str, name: str) -> None:
        """A write met an object that had changed or was gone."""


class Propagation(StrEnum):
    """Treatment of dependents by a deletion (metav1.DeletionPropagation)."""

    BACKGROUND = "Background"


class Api:
    """Requests to the API server."""

    def __init__(
        self,
        api_client: client.ApiClient,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        on_answer: OnAnswer = _ignore,
    ) -> None:
        self._client = api_client
        self._sleep = sleep
        self._informed: Informed | None = None
        self._on_answer = on_answer

    async def get(self, resource: Resource, namespace: str, name: str) -> Manifest | None:
        """One object; None if it does not exist."""
        try:
            return await self._request(Verb.GET, resource, resource.path(namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def list(
        self, resource: Resource, namespace: str | None, labels: Mapping[str, str] | str = "", *, fields: str = ""
    ) -> list[Manifest]:
        """All objects of a namespace (None: of the cluster), those with all `labels` (or of that selector) and of the
        field selector only."""
        selector = labels if isinstance(labels, str) else ",".join(f"{key}={labels[key]}" for key in sorted(labels))
        query = {"labelSelector": selector} if selector else {}
        if fields:
            query["fieldSelector"] = fields
        answer = await self._request(Verb.LIST, resource, resource.path(namespace), query=query)
        return cast(list[Manifest], answer.get("items") or [])

    async def pages(
        self,
        resource: Resource,
        namespace: str | None,
        selection: Selection = EVERYTHING,
        *,
        metadata_only: bool = False,
    ) -> AsyncGenerator[Page, None]:
        """All objects, or their metadata only, in pages, which bounds memory. Raises Gone if the server forgets the
        state of the first page meanwhile.
        """
        query = {**selection.query, "limit": str(selection.page_size)}
        accept = _METADATA_ONLY if metadata_only else _JSON
        while True:
            answer = await self._request(Verb.LIST, resource, resource.path(namespace), query=query, accept=accept)
            metadata = cast(Manifest, answer.get("metadata") or {})
            yield Page(cast(Sequence[Manifest], answer.get("items") or ()), str(metadata.get("resourceVersion", "")))
            following = metadata.get("continue")
            if not following:
                return
            query["continue"] = str(following)

    async def watch(
        self, resource: Resource, namespace: str | None, since: str, selection: Selection = EVERYTHING
    ) -> AsyncGenerator[WatchEvent, None]:
        """Watch the changes after `since` until the server ends the watch, which it does every few minutes. Raises
        Gone if the server has forgotten the changes since then, Unavailable if the connection is lost or silent for
        too long, and ApiError.
        """
        query = {
            **selection.query,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": since,
            "timeoutSeconds": str(_WATCH_SECONDS),
        }
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENT_SECONDS)
        path = resource.path(namespace)
        verb, url, headers, _, _ = await self._client.param_serialize(
            method="GET",
            resource_path=path,
            query_params=list(query.items()),
            header_params={"Accept": _JSON},
            auth_settings=["BearerToken"],
        )
        began = time.monotonic()
        try:
            answer = await self._client.call_api(verb, url, headers, _request_timeout=timeout)
            self._on_answer(Verb.WATCH, resource.plural, answer.status, time.monotonic() - began)
            try:
                if answer.status != 200:
                    raise _refusal(
                        answer.status, "GET", path, _parsed((await answer.read()).decode()), answer.headers
                    )
                async with aclosing(lines(answer.response.content)) as told:
                    async for line in told:
                        event = _event(path, line)
                        if event is not None:
                            yield event
            finally:
                answer.response.close()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(0, f"watch {path}", type(error).__name__) from None

    def keep_informed(self, informed: Informed) -> None:
        """Tell it of all writes from now on."""
        self._informed = informed

    async def outdated(self, resource: Resource, namespace: str, name: str) -> None:
        """An object turned out to have changed, or to be gone, since it was last seen."""
        if self._informed is not None:
            await self._informed.refused(resource, namespace, name)

    async def create(self, resource: Resource, namespace: str, manifest: Manifest) -> Manifest:
        """Create; raises Conflict if it exists already."""
        name = cast(str, cast(Manifest, manifest["metadata"])["name"])
        return await self._write(Verb.CREATE, resource, namespace, name, resource.path(namespace), manifest)

    async def apply(self, resource: Resource, namespace: str, manifest: Manifest) -> Manifest:
        """Server-side apply: fields named in `manifest` become the operator's."""
        name = cast(str, cast(Manifest, manifest["metadata"])["name"])
        path, content = resource.path(namespace, name), "application/apply-patch+yaml"
        return await self._write(Verb.APPLY, resource, namespace, name, path, manifest, content=content)

    async def merge(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        patch: Manifest,
        subresource: str | None = None,
        *,
        metadata_only: bool = False,
    ) -> Manifest:
        """JSON merge patch; with `metadata.resourceVersion` in it, raises Conflict if the object has changed.

        With `metadata_only` the answer has the object's metadata alone, and nobody is told of it.
        """
        return await self._write(
            Verb.PATCH,
            resource,
            namespace,
            name,
            resource.path(namespace, name, subresource),
            patch,
            content="application/merge-patch+json",
            subresource=subresource,
            metadata_only=metadata_only,
        )

    async def replace(self, resource: Resource, namespace: str, name: str, manifest: Manifest) -> Manifest:
        """Replace under the resourceVersion in `manifest`; raises Conflict if the object has changed."""
        return await self._write(Verb.UPDATE, resource, namespace, name, resource.path(namespace, name), manifest)

    async def delete(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        *,
        uid: str,
        resource_version: str | None = None,
        grace_seconds: int | None = None,
        propagation: Propagation = Propagation.BACKGROUND,
    ) -> None:
        """Delete the object with that UID, if it still exists. With `resource_version`, raises Conflict if it has
        changed since.
        """
        options: Manifest = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": propagation.value}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        preconditions: Manifest = {"uid": uid}
        if resource_version is not None:
            preconditions["resourceVersion"] = resource_version
        options["preconditions"] = preconditions
        try:
            await self._request(Verb.DELETE, resource, resource.path(namespace, name), body=options)
        except Conflict:
            # A conflict over the UID alone means that the object is gone and another one has its name.
            if resource_version is not None:
                raise
        except ApiError as error:
            if error.status != 404:
                raise

    async def _write(
        self,
        verb: Verb,
        resource: Resource,
        namespace: str,
        name: str,
        path: str,
        body: Manifest,
        *,
        content: str = _JSON,
        subresource: str | None = None,
        metadata_only: bool = False,
    ) -> Manifest:
        query = {"fieldManager": FIELD_MANAGER, **({"force": "true"} if verb is Verb.APPLY else {})}
        accept = _METADATA_ALONE if metadata_only else _JSON
        try:
            answer = await self._request(
                verb,
                resource,
                path,
                query=query,
                body=body,
                content=content,
                accept=accept,
                subresource=subresource,
            )
        except ApiError as error:
            gone = error.status == 404 and verb in (Verb.PATCH, Verb.UPDATE)
            if isinstance(error, Conflict) or gone:
                await self.outdated(resource, namespace, name)
            raise
        if self._informed is not None and not metadata_only:
            await self._informed.wrote(resource, answer)
        return answer

    async def _request(
        self,
        verb: Verb,
        resource: Resource,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Manifest | None = None,
        content: str = _JSON,
        accept: str = _JSON,
        subresource: str | None = None,
    ) -> Manifest:
        """Send a request, and retry it while the server can't answer. Raises ApiError."""
        method, asked = verb.method, "/".join(filter(None, (resource.plural, subresource)))
        count = partial(self._on_answer, verb, asked)
        for pause in REPEAT_SECONDS:
            try:
                return await self._try(method, path, query or {}, body, content, accept, count)
            except Unavailable as error:
                await self._sleep(min(LONGEST_REPEAT_SECONDS, max(pause, error.retry_after_seconds)))
        return await self._try(method, path, query or {}, body, content, accept, count)

    async def _try(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Manifest | None,
        content: str,
        accept: str,
        count: Callable[[int | None, float], None],
    ) -> Manifest:
        headers = {"Accept": accept}
        if body is not None:
            headers["Content-Type"] = content
        verb, url, headers, serialized, _ = await self._client.param_serialize(
            method=method,
            resource_path=path,
            query_params=list(query.items()),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        began = time.monotonic()
        try:
            answer = await self._client.call_api(verb, url, headers, serialized, _request_timeout=_REQUEST_SECONDS)
            text = (await answer.read() or b"").decode(errors="replace")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            count(None, time.monotonic() - began)
            raise Unavailable(0, f"{method} {path}", type(error).__name__) from None
        count(answer.status, time.monotonic() - began)
        parsed = _parsed(text)
        if 200 <= answer.status < 300:
            return parsed
        raise _refusal(answer.status, method, path, parsed, answer.headers)


def _refusal(status: int, method: str, path: str, said: Manifest, headers: Mapping[str, str]) -> ApiError:
    """The exception for a refusal."""
    message = refusal_message(method, path, said)
    if status == 429 or status >= 500:
        return Unavailable(status, f"{method} {path}", message, _retry_after(headers.get("Retry-After")))
    kind = {409: Conflict, 403: Forbidden, 410: Gone}.get(status, ApiError)
    return kind(status, f"{method} {path}", message)


def _event(path: str, line: bytes) -> WatchEvent | None:
    """Parses a line of a watch; None for an unknown kind of event. Raises ApiError for an error event."""
    event = _parsed(line.decode(errors="replace"))
    found = event.get("object")
    if event.get("type") not in set(EventType) or not isinstance(found, dict):
        return None
    kind = EventType(str(event["type"]))
    if kind is EventType.ERROR:
        code = found.get("code")
        raise _refusal(code if isinstance(code, int) else 500, "GET", path, found, {})
    return WatchEvent(kind, found)


def _parsed(text: str) -> Manifest:
    """An answer's JSON object; empty if it is not one, such as an answer of a proxy."""
    try:
        parsed = json.loads(text)
    except ValueError:
        return {}
    return cast(Manifest, parsed) if isinstance(parsed, dict) else {}


def _retry_after(header: str | None) -> float:
    """Seconds that the server asks to wait; 0 if it does not say, or gives a date."""
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        return 0.0


@asynccontextmanager
async def connected(on_answer: OnAnswer = _ignore) -> AsyncIterator[tuple[Api, client.ApiClient]]:
    """An Api with the pod's service account, or else with the current kube-context."""
    configuration = client.Configuration()
    try:
        config.load_incluster_config(client_configuration=configuration)
    except config.ConfigException:
        await config.load_kube_config(client_configuration=configuration)
    # Each watch keeps a connection, and what else is asked at a time is bounded elsewhere.
    configuration.connection_pool_maxsize = 0
    async with client.ApiClient(configuration=configuration) as api_client:
        yield Api(api_client, on_answer=on_answer), api_client
