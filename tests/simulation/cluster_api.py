"""Requests to the API server from within the simulation: plain objects in and out."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from typing import cast

import httpx
from pydantic import JsonValue

from claas_kube.objects.meta import Manifest
from claas_kube.resources import Resource
from tests.cluster.light import LightCluster

NAMESPACES = Resource("/api/v1", "namespaces")
MERGE = "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"
METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
"""Of one object, and of each that a watch tells of."""
LIST_OF_METADATA = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
WATCH_SECONDS = 7200
"""Longer than anybody watches here."""


class RequestRefusedError(AssertionError):
    """The API server refused something that the simulation asked for: the simulation or the test is wrong."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def field(data: JsonValue, *path: str | int) -> JsonValue:
    """What lies at a path; None where something on the way is missing."""
    for part in path:
        if isinstance(part, int):
            data = data[part] if isinstance(data, list) and len(data) > part else None
        else:
            data = data.get(part) if isinstance(data, dict) else None
    return data


def text(data: JsonValue, *path: str | int) -> str:
    """The string at a path; empty where there is none."""
    value = field(data, *path)
    return value if isinstance(value, str) else ""


class ClusterApi:
    """An administrator's requests."""

    def __init__(self, cluster: LightCluster) -> None:
        self._http = httpx.AsyncClient(
            base_url=cluster.url,
            headers={"Authorization": f"Bearer {cluster.token}"},
            verify=ssl.create_default_context(cafile=str(cluster.authority)),
            timeout=30,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def get(self, resource: Resource, namespace: str, name: str) -> Manifest | None:
        """One object, or None."""
        return await self._send("GET", resource.path(namespace, name), missing_is_none=True)

    async def list(
        self, resource: Resource, namespace: str | None = None, selector: str = "", *, metadata_only: bool = False
    ) -> list[Manifest]:
        """The objects of a namespace (None: of the cluster)."""
        accept = LIST_OF_METADATA if metadata_only else "application/json"
        query = {"labelSelector": selector} if selector else {}
        answer = await self._send("GET", resource.path(namespace), query=query, accept=accept)
        return cast("list[Manifest]", (answer or {}).get("items") or [])

    async def watch(
        self,
        resource: Resource,
        selector: str = "",
        *,
        namespace: str | None = None,
        accept: str = "application/json",
        query: Mapping[str, str] | None = None,
    ) -> AsyncIterator[tuple[str, Manifest]]:
        """What there is in the cluster (as ADDED) and what becomes of it: ADDED, MODIFIED or DELETED, and the object.
        Raises RequestRefusedError when the server ends it."""
        asked = {"watch": "true", "timeoutSeconds": str(WATCH_SECONDS), "labelSelector": selector, **(query or {})}
        timeout = httpx.Timeout(30, read=None)
        async with self._http.stream(
            "GET", resource.path(namespace), params=asked, headers={"Accept": accept}, timeout=timeout
        ) as answer:
            if answer.is_error:
                raise RequestRefusedError(answer.status_code, f"watch of {resource.plural}: {answer.status_code}")
            async for line in answer.aiter_lines():
                event = json.loads(line)
                if event["type"] == "ERROR":
                    break
                yield event["type"], event["object"]
        raise RequestRefusedError(0, f"the watch of {resource.plural} ended")

    async def create(
        self, resource: Resource, namespace: str | None, manifest: Manifest, *, accept: str = "application/json"
    ) -> Manifest:
        """Create; the created object."""
        return await self._send("POST", resource.path(namespace), body=manifest, accept=accept) or {}

    async def apply(self, resource: Resource, namespace: str, manifest: Manifest) -> Manifest:
        """Server-side apply, as kubectl does it."""
        path = resource.path(namespace, text(manifest, "metadata", "name"))
        query = {"fieldManager": "test", "force": "true"}
        return await self._send("PATCH", path, query=query, body=manifest, content=APPLY) or {}

    async def merge(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        patch: Manifest,
        subresource: str | None = None,
        *,
        accept: str = "application/json",
    ) -> Manifest | None:
        """Merge patch; None when the object is gone."""
        path = resource.path(namespace, name, subresource)
        return await self._send("PATCH", path, body=patch, content=MERGE, accept=accept, missing_is_none=True)

    async def delete(
        self, resource: Resource, namespace: str, name: str, *, grace_seconds: int | None = None
    ) -> None:
        """Delete; it may be gone already."""
        options: Manifest = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        await self._send("DELETE", resource.path(namespace, name), body=options, missing_is_none=True)

    async def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Manifest | None = None,
        content: str = "application/json",
        accept: str = "application/json",
        missing_is_none: bool = False,
    ) -> Manifest | None:
        headers = {"Content-Type": content, "Accept": accept}
        for _ in range(20):
            answer = await self._http.request(method, path, params=dict(query or {}), json=body, headers=headers)
            # A resource that was defined just now is not served for a moment.
            if answer.status_code != httpx.codes.TOO_MANY_REQUESTS:
                break
            await asyncio.sleep(0.5)
        if answer.status_code == httpx.codes.NOT_FOUND and missing_is_none:
            return None
        if answer.is_error:
            message = f"{method} {path}: HTTP {answer.status_code}: {answer.text[:500]}"
            raise RequestRefusedError(answer.status_code, message)
        return cast(Manifest, answer.json())
