"""A vLLM outside the cluster, as one server."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from claas_gateway.directory.models import Server, ServerGroup


def outside_servers(group: ServerGroup) -> Sequence[Server]:
    """The server at the group's address; none while that is not known. It counts as ready though no container runs:
    a request starts one."""
    app, url = group.serving.modal_app, (group.url or "").rstrip("/")
    if app is None or not _is_address(url):
        return ()
    uid = f"{group.namespace}/{url}"
    return [Server(group.namespace, f"modal:{app.app}", uid, url, ready=True, may_sleep=False, outside=True)]


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and not (parts.query or parts.fragment)
    except ValueError:
        return False
