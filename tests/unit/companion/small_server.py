"""A small ASGI app with vLLM's routes for adapters and completions, and a way to send it requests."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace

from claas_vllm.asgi import App, Message, Receive, Scope, Send

API_KEY = "key-of-vllm"
CONTROL_ROUTES_REACHED = "control route reached"


@dataclass(frozen=True)
class Reply:
    """A whole answer: status, headers by lower-case name, body."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict[str, object]:
        document = json.loads(self.body)
        assert isinstance(document, dict)
        return document


@dataclass
class SmallServer:
    """What vLLM does, as far as the companion can see it: adapters by name, an API key below /v1, streamed answers.

    `gate` holds completions back until it is set. `seen` are the bodies that completions received. `asleep` is None
    where it has no sleep mode; `wakes`: whether it can wake.
    """

    adapters: dict[str, str] = field(default_factory=dict)
    missing_paths: set[str] = field(default_factory=set)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    seen: list[bytes] = field(default_factory=list)
    reached: list[str] = field(default_factory=list)
    asleep: bool | None = None
    wakes: bool = True
    state: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(args=SimpleNamespace(api_key=[API_KEY])))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        self.reached.append(scope["path"])
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            return
        headers = dict(scope["headers"])
        body = await _whole_body(receive)
        if int(headers.get(b"content-length", len(body))) != len(body):
            await _say(send, 400, {"error": {"message": "wrong content length"}})
        elif scope["path"].startswith("/v1") and headers.get(b"authorization") != f"Bearer {API_KEY}".encode():
            await _say(send, 401, {"error": "Unauthorized"})
        elif scope["path"] == "/v1/models":
            await _say(send, 200, {"object": "list", "data": self._cards()})
        elif scope["path"] == "/v1/load_lora_adapter":
            await self._load(json.loads(body), send)
        elif scope["path"] == "/v1/unload_lora_adapter":
            known = self.adapters.pop(json.loads(body)["lora_name"], None)
            await _say(send, 200 if known else 404, {"error": {"message": "cannot be found"}})
        elif scope["path"] == "/sleep":
            self.asleep = True
            await _say(send, 200, {})
        elif scope["path"] == "/wake_up":
            self.asleep = not self.wakes
            await _say(send, 200 if self.wakes else 500, {"error": {"message": "out of memory"}})
        elif scope["path"] in ("/v1/completions", "/v1/chat/completions", "/tokenize"):
            await self._complete(body, send)
        else:
            await _say(send, 200, {"did": CONTROL_ROUTES_REACHED})

    def _cards(self) -> list[dict[str, str | None]]:
        cards: list[dict[str, str | None]] = [{"id": "base", "root": "/models/base", "parent": None}]
        cards += [{"id": name, "root": path, "parent": "base"} for name, path in self.adapters.items()]
        return cards

    async def _load(self, document: Mapping[str, str], send: Send) -> None:
        name, path = document["lora_name"], document["lora_path"]
        if name in self.adapters:
            await _say(send, 400, {"error": {"message": "has already been loaded"}})
        elif path in self.missing_paths:
            await _say(send, 404, {"error": {"message": f"No adapter found for {name}"}})
        else:
            self.adapters[name] = path
            await _say(send, 200, {})

    async def _complete(self, body: bytes, send: Send) -> None:
        self.seen.append(body)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first ", "more_body": True})
        await self.gate.wait()
        await send({"type": "http.response.body", "body": b"last"})


async def _whole_body(receive: Receive) -> bytes:
    body: bytes = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return body


async def _say(send: Send, status: int, document: Mapping[str, object]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": json.dumps(document).encode()})


async def ask(
    app: App,
    method: str,
    path: str,
    body: bytes = b"",
    *,
    headers: Mapping[str, str] | None = None,
    application: object = None,
    root_path: str = "",
    kind: str = "http",
    chunk_bytes: int = 1 << 16,
) -> Reply:
    """Send one request; `path` is the decoded path, as uvicorn puts it into the scope."""
    chunks = [body[start : start + chunk_bytes] for start in range(0, len(body), chunk_bytes)] or [b""]
    messages = iter(
        {"type": "http.request", "body": chunk, "more_body": number + 1 < len(chunks)}
        for number, chunk in enumerate(chunks)
    )
    given = {"authorization": f"Bearer {API_KEY}", "content-type": "application/json", **(headers or {})}
    scope: Scope = {
        "type": kind,
        "method": method,
        "path": path,
        "root_path": root_path,
        "headers": [
            *((name.encode(), value.encode()) for name, value in given.items()),
            (b"content-length", str(len(body)).encode()),
        ],
        "app": application,
    }
    sent: list[Message] = []

    async def receive() -> Message:
        message = next(messages, None)
        if message is None:
            await asyncio.Event().wait()
        return message or {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    if kind == "websocket":
        return Reply(1 if sent[0]["type"] == "websocket.accept" else 0, {}, b"")
    start = sent[0]
    return Reply(
        start["status"],
        {name.decode().lower(): value.decode() for name, value in start.get("headers", [])},
        b"".join(message.get("body", b"") for message in sent[1:]),
    )


async def start(app: App, application: object) -> list[Message]:
    """Run an app's start-up; returns what it told the server, up to its being ready or failing."""
    told: list[Message] = []
    ready = asyncio.Event()

    async def receive() -> Message:
        if not told:
            return {"type": "lifespan.startup"}
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        told.append(message)
        ready.set()

    running = asyncio.ensure_future(_run(app, {"type": "lifespan", "app": application}, receive, send))
    await asyncio.wait_for(ready.wait(), 5.0)
    running.cancel()
    return told


async def _run(app: App, scope: Scope, receive: Receive, send: Send) -> None:
    await app(scope, receive, send)
