"""TLS settings for requests to vLLM servers."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field, JsonValue

from claas_crds.base import ResourceModel


class Scheme(StrEnum):
    """Protocol on vLLM's port."""

    HTTP = "http"
    """HTTP without TLS."""
    HTTPS = "https"
    """HTTP over TLS, as with `--ssl-certfile`."""


class CertificatesKeyRef(ResourceModel):
    """One key of a Secret or ConfigMap in the same namespace, with certificates in PEM."""

    name: str = Field(min_length=1, max_length=253)
    """Its name."""
    key: str = Field(default="ca.crt", min_length=1, max_length=253)
    """Key within it."""


class ServingTls(ResourceModel):
    """How vLLM's certificate is verified; verification can't be switched off."""

    ca_secret_ref: CertificatesKeyRef | None = None
    """The CA that signed it, in a Secret. Without this and `caConfigMapRef`, public CAs are trusted."""
    ca_config_map_ref: CertificatesKeyRef | None = None
    """The CA that signed it, in a ConfigMap."""
    server_name: str | None = Field(
        default=None,
        max_length=253,
        json_schema_extra={"pattern": r"^[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?$"},
    )
    """A DNS name in the certificate, to verify it against. Requests go to pod IPs, which certificates seldom
    contain."""

    @property
    def certificates(self) -> CertificatesKeyRef | None:
        """Key that holds the CA; None: public CAs are trusted."""
        return self.ca_secret_ref or self.ca_config_map_ref


TLS_RULES: list[JsonValue] = [
    {
        "rule": "!(has(self.caSecretRef) && has(self.caConfigMapRef))",
        "message": "only one of caSecretRef and caConfigMapRef may be set",
    }
]


def _not_of_a_proxy(field: str) -> JsonValue:
    """CEL rule for a field that only concerns a user's vLLM."""
    return {
        "rule": f"!has(self.tinkerProxy) || !has(self.{field})",
        "message": f"{field} is about a vLLM of yours: leave it out with tinkerProxy",
        "fieldPath": f".{field}",
    }


SERVING_RULES: list[JsonValue] = [
    {
        "rule": "!has(self.tls) || (has(self.scheme) && self.scheme == 'https')",
        "message": "tls needs scheme: https",
        "fieldPath": ".tls",
    },
    {
        "rule": "has(self.deploymentRef) != has(self.tinkerProxy)",
        "message": "exactly one of deploymentRef and tinkerProxy must be set",
    },
    _not_of_a_proxy("container"),
    _not_of_a_proxy("apiKeySecretRef"),
    {
        "rule": "!has(self.tinkerProxy) || self.scheme == 'http'",
        "message": "the inference proxy speaks http",
        "fieldPath": ".scheme",
    },
    {
        "rule": "!has(self.tinkerProxy) || self.handover in ['Auto', 'None']",
        "message": "the inference proxy is never paused: handover can be Auto or None",
        "fieldPath": ".handover",
    },
]
