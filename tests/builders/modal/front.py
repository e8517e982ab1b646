"""A gateway whose adapter is served by a scripted vLLM behind Modal's front."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from pydantic import JsonValue

from claas_kube.resources import ADAPTERS, SECRETS
from tests.builders.api_server import SmallApi
from tests.builders.front import NAMESPACE, TOKEN, Front, adapter, front_of
from tests.builders.modal.server import PROXY_KEY, PROXY_SECRET, ModalServer

APP = "claas-vllm"
BY_MODAL: Mapping[str, JsonValue] = {
    "engine": {"modal": {}},
    "serving": {"modalApp": {"app": APP}, "controlTokenSecretRef": {"name": "vllm-control"}},
}
"""Further fields of such an adapter's spec."""


def place_modal(small: SmallApi, url: str | None, *, spec: Mapping[str, JsonValue] = BY_MODAL) -> None:
    """Have an adapter whose servers are at that address (None: nobody knows it yet), and its tokens."""
    status: JsonValue = {"servingUrl": url} if url is not None else {}
    small.put(ADAPTERS, NAMESPACE, {**adapter(spec=spec), "status": status})
    place_tokens(small)


def place_tokens(small: SmallApi, *, secret: str = PROXY_SECRET, control: str = TOKEN) -> None:
    """Have the Secrets with the control token and Modal's proxy token."""
    put_secret(small, "vllm-control", token=control)
    put_secret(small, "claas-modal-proxy", key=PROXY_KEY, secret=secret)


def put_secret(small: SmallApi, name: str, **texts: str) -> None:
    """Have a Secret with these texts."""
    data: JsonValue = {key: base64.b64encode(text.encode()).decode() for key, text in texts.items()}
    small.put(SECRETS, NAMESPACE, {"metadata": {"name": name}, "data": data})


@asynccontextmanager
async def modal_front(
    server: ModalServer, *, spec: Mapping[str, JsonValue] = BY_MODAL, url: str | None = None, **changed: str
) -> AsyncIterator[Front]:
    """A gateway before this server; `url` stands in place of the server's own address."""
    small = SmallApi()
    async with server.serving():
        place_modal(small, server.url if url is None else url, spec=spec)
        async with front_of(small, 1, **changed) as made:
            yield made
