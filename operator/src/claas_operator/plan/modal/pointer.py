"""Pointers: small files on a Modal Volume that tell the containers of an app what to serve under a name."""

from __future__ import annotations

from dataclasses import dataclass

from claas_crds.v1alpha1.engine import EngineSpec
from claas_crds.v1alpha1.version import AdapterVersion
from claas_kube.objects.resources import AdapterObject
from claas_kube.objects.serving_lease import GrantModel


class ModalPlace(GrantModel):
    """Where an app finds its pointers, and what opens it: all that is needed to write or remove one."""

    app: str
    volume: str
    environment: str | None = None
    """None: the workspace's default."""
    token_secret: str
    """Name of the Secret with the workspace's token."""


@dataclass(frozen=True)
class ModalServer:
    """The server of an app that answers for an adapter."""

    place: ModalPlace
    server: str
    proxy_secret: str
    """Name of the Secret with the proxy token."""


@dataclass(frozen=True)
class ServedPointer:
    """What should be served under a name."""

    served_name: str
    adapter_uid: str
    version: int
    weights: str
    """Address of the version's files on the Volume."""
    prompt: str
    max_tokens: int
    """The probe."""

    def same_version(self, other: ServedPointer | None) -> bool:
        """Whether the other one is to the same version, with the same files."""
        return other is not None and (self.version, self.weights) == (other.version, other.weights)


def server_of(adapter: AdapterObject, engine: EngineSpec) -> ModalServer | None:
    """The server on Modal that answers for an adapter; None if there is none, or its engine is another."""
    app, modal = adapter.spec.serving.modal_app, engine.modal
    if app is None or modal is None:
        return None
    place = ModalPlace(
        app=app.app, volume=modal.volume, environment=modal.environment, token_secret=modal.token_secret_ref.name
    )
    return ModalServer(place, app.server, app.proxy_token_secret_ref.name)


def pointer_to(adapter: AdapterObject, version: AdapterVersion | None) -> ServedPointer | None:
    """The pointer to a version; None for one without files on the Volume."""
    if version is None or version.weights is None:
        return None
    probe = adapter.spec.serving.probe
    return ServedPointer(
        served_name=adapter.served_name,
        adapter_uid=adapter.metadata.uid,
        version=version.number,
        weights=version.weights,
        prompt=probe.prompt,
        max_tokens=probe.max_tokens,
    )
