"""Calls vLLM's own routes inside the process."""

import json
import os
from collections.abc import Mapping
from posixpath import normpath
from typing import Any

from claas_vllm.asgi import App, Message, never, parse_object, replay
from claas_vllm.errors import ControlError

MODELS_ROUTE = "/v1/models"


class InnerServer:
    """vLLM's own routes, called inside the process, below this middleware and its lock."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def models(self, application: object) -> list[dict[str, Any]]:
        """The entries of vLLM's own `/v1/models`, without aliases."""
        status, body = await self.call(application, "GET", MODELS_ROUTE)
        if status != 200:
            raise ControlError(500, "InternalServerError", f"vLLM answers {MODELS_ROUTE} with HTTP {status}")
        cards: list[dict[str, Any]] = json.loads(body)["data"]
        return cards

    async def load(self, application: object, name: str, path: str) -> None:
        """Load an adapter unless it is loaded from that path already. Raises ControlError."""
        status, body = await self.call(
            application, "POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path}
        )
        if status == 200:
            return
        card = next((card for card in await self.models(application) if card["id"] == name), None)
        if card is None or not same_path(card.get("root"), path):
            raise ControlError(500, "InternalServerError", f"vLLM refused with HTTP {status}: {_message(body)}")

    async def unload(self, application: object, name: str) -> bool:
        """Unload an adapter. False if vLLM refused."""
        status, _ = await self.call(application, "POST", "/v1/unload_lora_adapter", {"lora_name": name})
        return status in (200, 404)

    async def sleep_once(self, application: object) -> None:
        """Sleep and wake. Raises ControlError if vLLM can't wake."""
        if (await self.call(application, "POST", "/sleep", query=b"level=1&mode=keep"))[0] == 404:
            return
        status, body = await self.call(application, "POST", "/wake_up")
        if status != 200:
            raise ControlError(500, "InternalServerError", f"vLLM slept and can't wake: {_message(body)}")

    async def call(
        self,
        application: object,
        method: str,
        path: str,
        document: Mapping[str, str] | None = None,
        query: bytes = b"",
    ) -> tuple[int, bytes]:
        """Send one request to the app below; returns the status and the whole body."""
        body = b"" if document is None else json.dumps(document).encode()
        headers = [(b"host", b"companion"), (b"content-type", b"application/json")]
        headers.append((b"content-length", str(len(body)).encode()))
        key = _api_key(application)
        if key is not None:
            headers.append((b"authorization", f"Bearer {key}".encode()))
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": path, "raw_path": path.encode(), "query_string": query, "root_path": "", "headers": headers,
            "client": ("127.0.0.1", 0), "server": ("127.0.0.1", 0), "app": application, "state": {},
        }  # fmt: skip
        status = 500
        answer: list[bytes] = []

        async def send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                answer.append(message.get("body", b""))

        await self._app(scope, replay([{"type": "http.request", "body": body}], never), send)
        return status, b"".join(answer)


def _api_key(application: object) -> str | None:
    """The key for vLLM's own authentication below this middleware: --api-key, or else VLLM_API_KEY."""
    keys = getattr(getattr(getattr(application, "state", None), "args", None), "api_key", None)
    if isinstance(keys, str):
        return keys
    return next((key for key in keys or [] if key), None) or os.environ.get("VLLM_API_KEY") or None


def has_sleep_mode(application: object) -> bool:
    """Whether vLLM was started with --enable-sleep-mode."""
    config = getattr(getattr(application, "state", None), "vllm_config", None)
    return getattr(getattr(config, "model_config", None), "enable_sleep_mode", False) is True


def same_path(left: object, right: str) -> bool:
    """Whether two paths are the same, as text."""
    return isinstance(left, str) and normpath(left) == normpath(right)


def _message(body: bytes) -> str:
    document = parse_object(body) or {}
    error = document.get("error")
    return str(error.get("message"))[:500] if isinstance(error, dict) else "no message"
