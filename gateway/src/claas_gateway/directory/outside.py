"""A vLLM outside the cluster, as one server."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from claas_gateway.directory.models import Server
from claas_kube.objects.resources import AdapterObject


def outside_servers(adapter: AdapterObject | None) -> Sequence[Server]:
    """The server at the address that the operator has found; none while it has not. It counts as ready though no
    container runs: a request starts one."""
    app = adapter.spec.serving.modal_app if adapter is not None else None
    if adapter is None or app is None:
        return ()
    namespace, url = adapter.metadata.namespace, (adapter.status.serving_url or "").rstrip("/")
    if not _is_address(url):
        return ()
    name, uid = f"modal:{app.app}", f"{namespace}/{url}"
    return [Server(namespace, name, uid, url, ready=True, may_sleep=False, outside=True)]


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and not (parts.query or parts.fragment)
    except ValueError:
        return False
