"""A directory of given adapters, without a cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from claas_crds.v1alpha1.version import AdapterVersion
from claas_gateway.directory.models import Adapter, Server, ServerGroup, Target
from claas_gateway.errors import NotFound
from claas_kube.objects.resources import AdapterObject, JobObject
from tests.builders.resources import lora_adapter


def played_adapter(
    namespace: str, name: str, *, served: int | None = None, head: int | None = None, ready: str = "Serving"
) -> Adapter:
    """An adapter; `ready` is the reason of its condition Ready, which is True for `Serving`."""
    status = {
        "servedVersion": served,
        "latestVersion": head,
        "conditions": [
            {
                "type": "Ready",
                "status": "True" if ready == "Serving" else "False",
                "reason": ready,
                "message": "every ready pod serves it" if ready == "Serving" else "what keeps it is told here",
                "lastTransitionTime": "2026-11-27T07:00:00Z",
            }
        ],
    }
    return Adapter(AdapterObject.model_validate({**lora_adapter(name, namespace), "status": status}))


class PlayedDirectory:
    """A directory whose adapters the test sets."""

    def __init__(self, *adapters: Adapter) -> None:
        self.known = list(adapters)
        self._listeners: list[Callable[[str, str], None]] = []

    def set(self, adapter: Adapter) -> None:
        """Add an adapter or put it in the place of the one that was so called; listeners hear of it."""
        key = (adapter.namespace, adapter.name)
        self.known = [each for each in self.known if (each.namespace, each.name) != key] + [adapter]
        for listener in self._listeners:
            listener(*key)

    def resolve(self, model: str | None, namespace: str | None, adapter: str | None = None) -> Target:
        """Nothing resolves here."""
        raise NotFound("there is no such model")

    def adapter(self, namespace: str, name: str) -> Adapter | None:
        """By name."""
        return next((each for each in self.known if (each.namespace, each.name) == (namespace, name)), None)

    def adapters(self, namespace: str | None, adapter: str | None = None) -> Sequence[Adapter]:
        """All that such a caller may see."""
        return [
            each
            for each in self.known
            if namespace in (None, each.namespace) and (adapter is None or each.name == adapter)
        ]

    def versions(self, adapter: Adapter) -> Sequence[AdapterVersion]:
        """Those in its status."""
        return adapter.found.status.versions

    def servers(self, group: ServerGroup) -> Sequence[Server]:
        """None."""
        return []

    def job(self, namespace: str, name: str) -> JobObject | None:
        """None."""
        return None

    def listen(self, changed: Callable[[str, str], None]) -> None:
        """Call it at each `set`."""
        self._listeners.append(changed)
