"""How servers are asked over TLS."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field, JsonValue

from claas_crds.base import ResourceModel


class Scheme(StrEnum):
    """What vLLM speaks on its port."""

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
    """How vLLM's certificate is verified. It always is."""

    ca_secret_ref: CertificatesKeyRef | None = None
    """The CA that signed it, in a Secret. Public CAs are trusted where neither this nor `caConfigMapRef` is set."""
    ca_config_map_ref: CertificatesKeyRef | None = None
    """The CA that signed it, in a ConfigMap."""
    server_name: str | None = Field(
        default=None,
        max_length=253,
        json_schema_extra={"pattern": r"^[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?$"},
    )
    """A DNS name that the certificate is for. Pods are asked by their addresses, which certificates seldom hold; with
    it the certificate is verified for this name."""

    @property
    def certificates(self) -> CertificatesKeyRef | None:
        """Where the CA is; None: public ones are trusted."""
        return self.ca_secret_ref or self.ca_config_map_ref


TLS_RULES: list[JsonValue] = [
    {
        "rule": "!(has(self.caSecretRef) && has(self.caConfigMapRef))",
        "message": "only one of caSecretRef and caConfigMapRef may be set",
    }
]
SERVING_RULES: list[JsonValue] = [
    {
        "rule": "!has(self.tls) || (has(self.scheme) && self.scheme == 'https')",
        "message": "tls needs scheme: https",
        "fieldPath": ".tls",
    }
]
