"""Reads the credentials for servers: tokens from Secrets, certificates from Secrets and ConfigMaps."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from datetime import datetime
from typing import cast

from claas_crds.v1alpha1.tls import ServingTls
from claas_crds.v1alpha1.trainer_pod import SecretKeyRef
from claas_kube.api import Api
from claas_kube.objects.meta import SecretMeta
from claas_kube.resources import CONFIG_MAPS, SECRETS
from claas_operator.clients.recent import RECENT_SECONDS, Recent
from claas_operator.clients.servers import Credentials
from claas_vllm_client import Tls, token_fault, token_text


@dataclass(frozen=True)
class SecretToken:
    """A token from a Secret: its text, or why it is unusable, and when the Secret last changed."""

    text: str | None = field(repr=False)
    fault: str | None
    changed: datetime | None


class CredentialReader:
    """Reads credentials; what is found is not asked for again within RECENT_SECONDS."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._tokens: Recent[SecretToken | None] = Recent(RECENT_SECONDS)
        self._certificates: Recent[str | None] = Recent(RECENT_SECONDS)

    async def of(
        self,
        namespace: str,
        control_token: SecretKeyRef | None,
        api_key: SecretKeyRef | None,
        tls: ServingTls | None = None,
    ) -> Credentials:
        """The contents of the Secrets for a server; None for those that are not named, missing or unusable."""
        token = await self.token(namespace, control_token) if control_token else None
        key = await self.token(namespace, api_key) if api_key else None
        verified = None
        if tls is not None:
            # If the named certificates are missing, nothing is trusted; never fall back to public CAs.
            ca = (await self.certificates(namespace, tls) or "") if tls.certificates else None
            verified = Tls(ca, tls.server_name)
        return Credentials(token.text if token else None, key.text if key else None, verified)

    async def certificates(self, namespace: str, tls: ServingTls) -> str | None:
        """The certificates that an adapter's TLS settings name, in PEM; None if they are missing."""
        if tls.certificates is None:
            return None
        return await self._certificates.get(
            (namespace, tls.ca_secret_ref, tls.ca_config_map_ref),
            lambda: self._certificates_now(namespace, tls),
            keep=lambda text: text is not None,
        )

    async def _certificates_now(self, namespace: str, tls: ServingTls) -> str | None:
        reference = tls.certificates
        assert reference is not None
        found = await self._api.get(SECRETS if tls.ca_secret_ref else CONFIG_MAPS, namespace, reference.name)
        text = cast(dict[str, str], (found or {}).get("data") or {}).get(reference.key)
        if text is None or tls.ca_secret_ref is None:
            return text
        return base64.b64decode(text).decode(errors="replace")

    async def token(self, namespace: str, reference: SecretKeyRef) -> SecretToken | None:
        """One key of a Secret as a token; None if it is missing."""
        return await self._tokens.get(
            (namespace, reference),
            lambda: self._token_now(namespace, reference),
            keep=lambda token: token is not None and token.fault is None,
        )

    async def _token_now(self, namespace: str, reference: SecretKeyRef) -> SecretToken | None:
        secret = await self._api.get(SECRETS, namespace, reference.name)
        value = cast(dict[str, str], (secret or {}).get("data") or {}).get(reference.key)
        if secret is None or value is None:
            return None
        raw = base64.b64decode(value)
        fault = token_fault(raw)
        changed = SecretMeta.model_validate(secret["metadata"]).changed
        if fault is not None:
            return SecretToken(None, f"key {reference.key} of Secret {reference.name} {fault}", changed)
        return SecretToken(token_text(raw), None, changed)
