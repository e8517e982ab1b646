"""The kinds of objects that are read or written, and their places in the API."""

from __future__ import annotations

from dataclasses import dataclass

from claas_crds import GROUP, VERSION


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
SERVICES = Resource("/api/v1", "services")
CONFIG_MAPS = Resource("/api/v1", "configmaps")
CLAIMS = Resource("/api/v1", "persistentvolumeclaims")
LEASES = Resource("/apis/coordination.k8s.io/v1", "leases")
EVENTS = Resource("/api/v1", "events")
