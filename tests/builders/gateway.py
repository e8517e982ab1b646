"""What the gateway's rooms need around them: settings, and a directory of adapters that are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from pydantic import JsonValue

from claas_crds.v1alpha1.version import AdapterVersion
from claas_gateway.directory.models import Adapter, Server, ServerGroup, Target
from claas_gateway.errors import NotFound
from claas_gateway.settings import Settings
from claas_kube.objects.resources import AdapterObject, JobObject
from tests.builders.resources import lora_adapter

_SETTINGS = Settings.from_environment(
    {"CLAAS_GATEWAY_KEYS": "required", "CLAAS_GATEWAY_DATABASE_URL": "sqlite+aiosqlite://"}
)


def gateway_settings(**changes: object) -> Settings:
    """Settings with keys required."""
    return replace(_SETTINGS, **changes)  # type: ignore[arg-type]


def gateway_adapter(
    name: str,
    namespace: str,
    *,
    lora_id: str | None = None,
    labels: Mapping[str, str] | None = None,
    serving: Mapping[str, JsonValue] | None = None,
    status: Mapping[str, JsonValue] | None = None,
    deployment: str = "vllm",
) -> Adapter:
    """An adapter as the directory shows it."""
    manifest = dict(lora_adapter(name, namespace, serving=serving, deployment=deployment, handover="Sleep"))
    spec = {**manifest["spec"], **({"loraId": lora_id} if lora_id else {})}  # type: ignore[dict-item]
    metadata = {"name": name, "namespace": namespace, "uid": f"uid-{namespace}-{name}", "labels": dict(labels or {})}
    return Adapter(AdapterObject.model_validate({"metadata": metadata, "spec": spec, "status": dict(status or {})}))


class FixedDirectory:
    """A directory of the adapters and servers that a test gives it."""

    def __init__(self, adapters: Sequence[Adapter] = ()) -> None:
        self.known = list(adapters)
        self.pods: dict[tuple[str, str], list[Server]] = {}
        self.complete = True
        self.listeners: list[Callable[[str, str], None]] = []

    def resolve(self, model: str | None, namespace: str | None, adapter: str | None = None) -> Target:
        """By the identifier, its aliases, or the served name."""
        for each in self.adapters(namespace, adapter):
            names = {each.lora_id, f"{each.lora_id}-init", f"{each.lora_id}-latest", each.served_name}
            if model in names:
                return each
        raise NotFound("no such model")

    def adapter(self, namespace: str, name: str) -> Adapter | None:
        """By namespace and name."""
        return next((each for each in self.known if (each.namespace, each.name) == (namespace, name)), None)

    def adapters(self, namespace: str | None, adapter: str | None = None) -> Sequence[Adapter]:
        """What a caller sees, by identifier."""
        return sorted(
            (each for each in self.known if namespace in (None, each.namespace) and adapter in (None, each.name)),
            key=lambda each: each.lora_id,
        )

    def base_models(self, namespace: str | None) -> Sequence[str]:
        """Those of the adapters."""
        return sorted({each.base_model for each in self.adapters(namespace)})

    def versions(self, adapter: Adapter) -> Sequence[AdapterVersion]:
        """Those in status."""
        return adapter.found.status.versions

    def servers(self, group: ServerGroup) -> Sequence[Server]:
        """The pods that the test named."""
        return self.pods.get((group.namespace, group.deployment), [])

    def job(self, namespace: str, name: str) -> JobObject | None:
        """None."""
        return None

    def listed(self) -> bool:
        """As the test says."""
        return self.complete

    def listen(self, changed: Callable[[str, str], None]) -> None:
        """Keep the listener, for the test to call."""
        self.listeners.append(changed)

    def tell(self, namespace: str, adapter: str) -> None:
        """Call the listeners."""
        for listener in self.listeners:
            listener(namespace, adapter)


def ready_server(namespace: str, pod: str, *, ready: bool = True, url: str = "http://192.0.2.1:8000") -> Server:
    """A vLLM pod."""
    return Server(namespace=namespace, pod=pod, uid=f"uid-{pod}", url=url, ready=ready, may_sleep=False)
