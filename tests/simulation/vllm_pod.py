"""One vLLM pod: the real companion over a small app with vLLM's own routes, served by uvicorn on a loopback address.

The app sleeps, wakes, pauses, loads, unloads, lists and completes as vLLM does, as far as operator and trainer can
see it. While it sleeps, completions wait.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs

import uvicorn
from pydantic import JsonValue

from claas_vllm import Companion
from claas_vllm.asgi import App, Receive, Scope, Send
from tests.simulation.volume import Volume

CONTROL_TOKEN = "the-control-token-of-the-tests"
BASE_MODEL = "base"


class VllmApp:
    """vLLM's routes. `sleeps` and `wakes` are times by the monotonic clock."""

    def __init__(self, namespace: str, volume: Volume) -> None:
        self._namespace = namespace
        self._volume = volume
        self._awake = asyncio.Event()
        self._awake.set()
        self.adapters: dict[str, str] = {}
        self.sleeps: list[float] = []
        self.wakes: list[float] = []
        self.loads: list[str] = []
        self.refuses = ""
        """Paths that end so are no adapters that it takes; empty: it takes all."""
        self.refusals: list[float] = []
        self.silent: set[str] = set()
        """Adapters that are loaded and not applied: the base answers in their place."""
        self.loads_in_vain = False
        """Whether what is loaded now is not applied."""

    @property
    def asleep(self) -> bool:
        """Whether it sleeps or is paused."""
        return not self._awake.is_set()

    def sleep(self) -> None:
        """Go to sleep."""
        if not self.asleep:
            self.sleeps.append(time.monotonic())
        self._awake.clear()

    def wake(self) -> None:
        """Wake up."""
        if self.asleep:
            self.wakes.append(time.monotonic())
        self._awake.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        document = json.loads(await _body(receive) or b"{}")
        status, answer = await self._answer(scope["method"], scope["path"], scope["query_string"], document)
        await _say(send, status, answer)

    async def _answer(
        self, method: str, path: str, query: bytes, document: Mapping[str, JsonValue]
    ) -> tuple[int, Mapping[str, JsonValue]]:
        match method, path:
            case "GET", "/health":
                return 200, {}
            case "GET", "/v1/models":
                return 200, {"object": "list", "data": self._cards()}
            case "POST", "/v1/load_lora_adapter":
                return self._load(str(document["lora_name"]), str(document["lora_path"]))
            case "POST", "/v1/unload_lora_adapter":
                known = self.adapters.pop(str(document["lora_name"]), None)
                return (200, {}) if known else _error(404, "cannot be found")
            case "POST", "/v1/completions":
                return await self._complete(str(document["model"]))
            case "POST", "/sleep" | "/pause":
                assert parse_qs(query.decode()).get("mode") in (["keep"], ["wait"], ["abort"])
                self.sleep()
                return 200, {}
            case "POST", "/wake_up" | "/resume":
                self.wake()
                return 200, {}
            case "GET", "/is_sleeping":
                return 200, {"is_sleeping": self.asleep}
            case "GET", "/is_paused":
                return 200, {"is_paused": self.asleep}
            case _:
                return 404, {"detail": "Not Found"}

    def _cards(self) -> list[JsonValue]:
        cards: list[JsonValue] = [{"id": BASE_MODEL, "root": "/models/base", "parent": None}]
        cards += [{"id": name, "root": path, "parent": BASE_MODEL} for name, path in self.adapters.items()]
        return cards

    def _load(self, name: str, path: str) -> tuple[int, Mapping[str, JsonValue]]:
        if name in self.adapters:
            return _error(400, f"The lora adapter '{name}' has already been loaded.")
        if not self._volume.can_load(self._namespace, path):
            return _error(404, f"No adapter found for {name}")
        if self.refuses and path.endswith(self.refuses):
            self.refusals.append(time.monotonic())
            return _error(400, f"{name}: the rank is greater than max_lora_rank")
        self.adapters[name] = path
        (self.silent.add if self.loads_in_vain else self.silent.discard)(name)
        self.loads.append(path)
        return 200, {}

    async def _complete(self, model: str) -> tuple[int, Mapping[str, JsonValue]]:
        await self._awake.wait()
        if model != BASE_MODEL and model not in self.adapters:
            return _error(404, f"The model `{model}` does not exist.")
        # Version 0 changes nothing yet, and so answers as the base does.
        applied = model in self.adapters and model not in self.silent and not self.adapters[model].endswith("/0")
        likeliest: JsonValue = {"token_id:7": -0.5, "token_id:8": -3.0 if applied else -1.0}
        logprobs: JsonValue = {"token_logprobs": [-0.5], "top_logprobs": [likeliest]}
        choice: JsonValue = {"text": "Hi", "token_ids": [7], "logprobs": logprobs}
        return 200, {"model": model, "choices": [choice]}


class VllmServer:
    """The process of one vLLM pod: it can be stopped, and started again with nothing loaded."""

    def __init__(
        self,
        namespace: str,
        address: str,
        port: int,
        volume: Volume,
        folder: Path,
        *,
        companion: bool,
        persists: bool,
    ) -> None:
        self.namespace = namespace
        self.address = address
        self.port = port
        self._volume = volume
        self._folder = folder
        self._companion = companion
        self._persists = persists
        self._server: uvicorn.Server | None = None
        self._task: asyncio.Task[None] | None = None
        self.app = VllmApp(namespace, volume)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{self.address}:{self.port}"

    def want_token(self, token: str) -> None:
        """Let the companion's lock ask for another control token from now on."""
        (self._folder / "token").write_text(token)

    async def start(self) -> None:
        """Listen; returns once it does."""
        self.app = VllmApp(self.namespace, self._volume)
        served: App = self.app
        if self._companion:
            with self._environment():
                served = Companion(self.app)
        config = uvicorn.Config(
            served, host=self.address, port=self.port, log_level="error", lifespan="on", timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        self._task = asyncio.create_task(self._server.serve())
        for _ in range(1000):
            if self._server.started:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"no vLLM server on {self.url}")

    async def stop(self) -> None:
        """End the process: its connections break off."""
        if self._server is None or self._task is None:
            return
        self._server.should_exit = True
        await self._task
        self._server = None

    @contextmanager
    def _environment(self) -> Iterator[None]:
        """The environment that the companion reads when it is made."""
        self._folder.mkdir(parents=True, exist_ok=True)
        token = self._folder / "token"
        token.write_text(CONTROL_TOKEN)
        variables = {"CLAAS_TOKEN_FILE": str(token)}
        if self._persists:
            variables["CLAAS_ALIAS_DIR"] = str(self._folder / "aliases")
        os.environ.update(variables)
        try:
            yield
        finally:
            for name in variables:
                del os.environ[name]


async def _live(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def _body(receive: Receive) -> bytes:
    body: bytes = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return body


async def _say(send: Send, status: int, document: Mapping[str, JsonValue]) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(document).encode()})


def _error(status: int, message: str) -> tuple[int, Mapping[str, JsonValue]]:
    return status, {"error": {"message": message, "type": "Error"}}
