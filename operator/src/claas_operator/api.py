"""The API server: the one place where the operator talks to it.

Objects go in and out as plain data; a missing object is None. Writes are create-exclusive, server-side apply with
one field manager, or a merge patch under a resourceVersion precondition.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import cast

from kubernetes.aio import client, config

from claas_crds import GROUP, VERSION
from claas_operator.core import Manifest
from claas_operator.errors import ApiError, Conflict, Forbidden

FIELD_MANAGER = "claas-operator"


@dataclass(frozen=True)
class Resource:
    """A kind of object and its place in the API."""

    prefix: str
    plural: str

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """The URL path of the collection or of one object."""
        parts = [self.prefix]
        if namespace is not None:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        parts += [part for part in (name, subresource) if part is not None]
        return "/".join(parts)


ADAPTERS = Resource(f"/apis/{GROUP}/{VERSION}", "loraadapters")
DISTILL_JOBS = Resource(f"/apis/{GROUP}/{VERSION}", "distilljobs")
BATCH_JOBS = Resource("/apis/batch/v1", "jobs")
DEPLOYMENTS = Resource("/apis/apps/v1", "deployments")
PODS = Resource("/api/v1", "pods")
SECRETS = Resource("/api/v1", "secrets")
CONFIG_MAPS = Resource("/api/v1", "configmaps")
CLAIMS = Resource("/api/v1", "persistentvolumeclaims")
LEASES = Resource("/apis/coordination.k8s.io/v1", "leases")
EVENTS = Resource("/api/v1", "events")


class Propagation(StrEnum):
    """What a deletion does with dependents (metav1.DeletionPropagation)."""

    BACKGROUND = "Background"
    FOREGROUND = "Foreground"


class Api:
    """Requests to the API server."""

    def __init__(self, api_client: client.ApiClient) -> None:
        self._client = api_client

    async def get(self, resource: Resource, namespace: str, name: str) -> Manifest | None:
        """One object, or None when there is none."""
        try:
            return await self._request("GET", resource.path(namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def list(
        self, resource: Resource, namespace: str | None, labels: Mapping[str, str] | str = ""
    ) -> list[Manifest]:
        """All objects of a namespace (None: of the cluster), those with all `labels` (or of that selector) only."""
        selector = labels if isinstance(labels, str) else ",".join(f"{key}={labels[key]}" for key in sorted(labels))
        query = {"labelSelector": selector} if selector else {}
        answer = await self._request("GET", resource.path(namespace), query=query)
        return cast(list[Manifest], answer.get("items") or [])

    async def create(self, resource: Resource, namespace: str, manifest: Manifest) -> Manifest:
        """Create; raises Conflict when it exists already."""
        query = {"fieldManager": FIELD_MANAGER}
        return await self._request("POST", resource.path(namespace), query=query, body=manifest)

    async def apply(self, resource: Resource, namespace: str, manifest: Manifest) -> Manifest:
        """Server-side apply: fields named in `manifest` become the operator's."""
        name = cast(str, cast(Manifest, manifest["metadata"])["name"])
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        return await self._request(
            "PATCH",
            resource.path(namespace, name),
            query=query,
            body=manifest,
            content="application/apply-patch+yaml",
        )

    async def merge(
        self, resource: Resource, namespace: str, name: str, patch: Manifest, subresource: str | None = None
    ) -> Manifest:
        """JSON merge patch; with `metadata.resourceVersion` in it, raises Conflict when the object has changed."""
        return await self._request(
            "PATCH",
            resource.path(namespace, name, subresource),
            query={"fieldManager": FIELD_MANAGER},
            body=patch,
            content="application/merge-patch+json",
        )

    async def replace(self, resource: Resource, namespace: str, name: str, manifest: Manifest) -> Manifest:
        """Replace under the resourceVersion in `manifest`; raises Conflict when the object has changed."""
        query = {"fieldManager": FIELD_MANAGER}
        return await self._request("PUT", resource.path(namespace, name), query=query, body=manifest)

    async def delete(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        *,
        uid: str | None = None,
        grace_seconds: int | None = None,
        propagation: Propagation = Propagation.BACKGROUND,
    ) -> None:
        """Delete the object, of that UID only; it may be gone already."""
        options: Manifest = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": propagation.value}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        try:
            await self._request("DELETE", resource.path(namespace, name), body=options)
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    async def _request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Manifest | None = None,
        content: str = "application/json",
    ) -> Manifest:
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = content
        method, url, headers, serialized, _ = await self._client.param_serialize(
            method=method,
            resource_path=path,
            query_params=list((query or {}).items()),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        answer = await self._client.call_api(method, url, headers, serialized, _request_timeout=30)
        text = (await answer.read() or b"").decode()
        parsed = cast(Manifest, json.loads(text)) if text.startswith("{") else {}
        if 200 <= answer.status < 300:
            return parsed
        # The body of a refusal can quote the object, so only its message for known statuses is kept.
        message = str(parsed.get("message", ""))[:512]
        kind = {409: Conflict, 403: Forbidden}.get(answer.status, ApiError)
        raise kind(answer.status, f"{method} {path}", message)


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Api, client.ApiClient]]:
    """An Api with the pod's service account, or else with the current kube-context."""
    configuration = client.Configuration()
    try:
        config.load_incluster_config(client_configuration=configuration)
    except config.ConfigException:
        await config.load_kube_config(client_configuration=configuration)
    async with client.ApiClient(configuration=configuration) as api_client:
        yield Api(api_client), api_client
