"""Kubeconfig files for the cluster's clients."""

import base64
from pathlib import Path

import yaml

from tests.cluster.services.certificates import KeyPair


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def render_kubeconfig(url: str, *, authority: Path, token: str | None = None, client: KeyPair | None = None) -> str:
    """A kubeconfig that holds everything itself; the client has a bearer token or a certificate."""
    user: dict[str, str] = {}
    if token is not None:
        user["token"] = token
    if client is not None:
        user["client-certificate-data"] = _encoded(client.certificate)
        user["client-key-data"] = _encoded(client.key)
    name = "claas-test"
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": {"server": url, "certificate-authority-data": _encoded(authority)}}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    }
    return yaml.safe_dump(document, sort_keys=False)


def write_private(path: Path, text: str) -> Path:
    """Write a file that only its owner may read."""
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(text)
    return path
