"""The Secrets that an adapter names: whether they exist, and can be sent."""

from __future__ import annotations

from datetime import datetime

from claas_contract import places
from claas_crds.v1alpha1.engine import EngineName
from claas_crds.v1alpha1.trainer_pod import SecretKeyRef
from claas_kube.objects.resources import AdapterObject
from claas_operator.clients.credentials import CredentialReader
from claas_operator.clients.proxies import own_token
from claas_operator.plan.engine.choice import service_secret
from claas_operator.plan.world import SecretsSeen
from claas_vllm_client import certificates_fault


async def secrets_seen(credentials: CredentialReader, adapter: AdapterObject, engine: EngineName) -> SecretsSeen:
    """The Secrets of an adapter; `engine`: that of adapters which name none."""
    spec = adapter.spec
    hub = spec.model.source.hub
    named = [
        # One that the operator chooses itself is made before it is needed.
        ("spec.serving.controlTokenSecretRef", adapter.control_token if own_token(adapter) is None else None),
        ("spec.serving.apiKeySecretRef", spec.serving.api_key_secret_ref),
        ("spec.model.source.hub.tokenSecretRef", hub.token_secret_ref if hub else None),
    ]
    if (service := service_secret(adapter, engine)) is not None:
        named += [(service.field, SecretKeyRef(name=service.name, key=key)) for key in service.files]
    if (modal := spec.serving.modal_app) is not None:
        keys = (places.MODAL_PROXY_KEY, places.MODAL_PROXY_SECRET)
        field, secret = "spec.serving.modalApp.proxyTokenSecretRef", modal.proxy_token_secret_ref.name
        named += [(field, SecretKeyRef(name=secret, key=key)) for key in keys]
    missing: list[str] = []
    invalid: list[str] = []
    changed: datetime | None = None
    for field, reference in named:
        if reference is None:
            continue
        found = await credentials.token(adapter.metadata.namespace, reference)
        if found is None:
            missing.append(f"{reference.name}/{reference.key} ({field})")
            continue
        if found.fault is not None:
            invalid.append(f"{field}: {found.fault}")
        if found.changed is not None:
            changed = max(changed or found.changed, found.changed)
    await _certificates(credentials, adapter, missing, invalid)
    return SecretsSeen(tuple(missing), tuple(invalid), changed)


async def _certificates(
    credentials: CredentialReader, adapter: AdapterObject, missing: list[str], invalid: list[str]
) -> None:
    tls = adapter.spec.serving.tls
    reference = tls.certificates if tls is not None else None
    if tls is None or reference is None:
        return
    found = await credentials.certificates(adapter.metadata.namespace, tls)
    field, kind = ("caSecretRef", "Secret") if tls.ca_secret_ref else ("caConfigMapRef", "ConfigMap")
    if found is None:
        missing.append(f"{reference.name}/{reference.key} (spec.serving.tls.{field})")
    elif (fault := certificates_fault(found)) is not None:
        invalid.append(f"spec.serving.tls.{field}: key {reference.key} of {kind} {reference.name} {fault}")
