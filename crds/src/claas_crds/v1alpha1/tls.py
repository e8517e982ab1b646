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


def _of_deployments(field: str) -> JsonValue:
    """CEL rule for a field that only concerns a user's Deployment."""
    return {
        "rule": f"has(self.deploymentRef) || !has(self.{field})",
        "message": f"{field} is about a vLLM in the cluster: leave it out without deploymentRef",
        "fieldPath": f".{field}",
    }


SERVING_RULES: list[JsonValue] = [
    {
        "rule": "!has(self.tls) || (has(self.scheme) && self.scheme == 'https')",
        "message": "tls needs scheme: https",
        "fieldPath": ".tls",
    },
    {
        "rule": "[has(self.deploymentRef), has(self.tinkerProxy), has(self.modalApp)]"
        ".filter(given, given).size() == 1",
        "message": "exactly one of deploymentRef, tinkerProxy and modalApp must be set",
    },
    {
        "rule": "!has(self.deploymentRef) || !self.deploymentRef.name.endsWith('.modal')",
        "message": "names that end with .modal stand for apps on Modal: give the Deployment another one",
        "fieldPath": ".deploymentRef.name",
    },
    _of_deployments("container"),
    _of_deployments("apiKeySecretRef"),
    {
        "rule": "has(self.deploymentRef) || self.scheme == 'http'",
        "message": "scheme is about a vLLM in the cluster: leave it out without deploymentRef",
        "fieldPath": ".scheme",
    },
    {
        "rule": "has(self.deploymentRef) || self.handover in ['Auto', 'None']",
        "message": "only a vLLM in the cluster is ever paused: handover can be Auto or None without deploymentRef",
        "fieldPath": ".handover",
    },
]
