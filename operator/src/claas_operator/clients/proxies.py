"""Inference proxies as the operator has made them. After a restart each is applied once more, which changes nothing
where it is as it should be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from claas_crds.v1alpha1.trainer_pod import SecretKeyRef
from claas_kube.objects.meta import ObjectMeta
from claas_kube.objects.resources import AdapterObject
from claas_kube.objects.workloads import Deployment
from claas_operator.clients.reader import Reader
from claas_operator.plan.world import ProxyState


def own_token(adapter: AdapterObject) -> SecretKeyRef | None:
    """The control token that the operator chooses for the adapter's proxy; None where the spec names one."""
    given = adapter.spec.serving.tinker_proxy is None or adapter.spec.serving.control_token_secret_ref is not None
    return None if given else adapter.control_token


@dataclass(frozen=True)
class _Applied:
    """What was applied, and the two objects as the server answered."""

    adapter_generation: int
    deployment: tuple[object, ...]
    service: tuple[object, ...]


class Proxies:
    """Which proxies are as they should be."""

    def __init__(self, read: Reader) -> None:
        self._read = read
        self._applied: dict[str, _Applied] = {}
        """By the UIDs of adapters."""

    async def state(self, adapter: AdapterObject, deployment: Deployment | None) -> ProxyState | None:
        """The proxy of an adapter; None if it uses a vLLM."""
        if adapter.spec.serving.tinker_proxy is None:
            self.forget(adapter)
            return None
        namespace, name = adapter.metadata.namespace, adapter.deployment_name
        service = await self._read.service(namespace, name)
        useless, secret = await self._token(adapter)
        found = (
            ("Deployment", deployment.metadata if deployment else None),
            ("Service", service),
            ("Secret", secret),
        )
        applied = self._applied.get(adapter.metadata.uid)
        current = (
            applied is not None
            and deployment is not None
            and service is not None
            and applied == _applied(adapter, deployment.metadata, service)
        )
        token_missing = useless and _taken_by(adapter, [("Secret", secret)]) is None
        return ProxyState(current=current, token_missing=token_missing, taken_by=_taken_by(adapter, found))

    async def _token(self, adapter: AdapterObject) -> tuple[bool, ObjectMeta | None]:
        """Whether the control token that the operator chooses is missing or can't be sent; and then its Secret."""
        namespace, reference = adapter.metadata.namespace, own_token(adapter)
        token = await self._read.credentials.token(namespace, reference) if reference is not None else None
        if reference is None or (token is not None and token.fault is None):
            return False, None
        return True, await self._read.secret(namespace, reference.name)

    def note(self, adapter: AdapterObject, deployment: ObjectMeta, service: ObjectMeta) -> None:
        """The proxy was applied, with these answers."""
        self._applied[adapter.metadata.uid] = _applied(adapter, deployment, service)

    def forget(self, adapter: AdapterObject) -> None:
        """The adapter has no proxy."""
        self._applied.pop(adapter.metadata.uid, None)


def _applied(adapter: AdapterObject, deployment: ObjectMeta, service: ObjectMeta) -> _Applied:
    # A Deployment's generation counts changes of its spec, and its controller writes only status and annotations. A
    # Service has no generation.
    return _Applied(
        adapter.metadata.generation,
        (deployment.uid, deployment.generation, deployment.labels, deployment.owner_references),
        (service.uid, service.resource_version),
    )


def _taken_by(adapter: AdapterObject, found: Iterable[tuple[str, ObjectMeta | None]]) -> str | None:
    """An object with the proxy's name that is not the adapter's."""
    uid = adapter.metadata.uid
    for kind, metadata in found:
        if metadata is not None and all(owner.uid != uid for owner in metadata.owner_references):
            return f"{kind} {metadata.name}"
    return None
