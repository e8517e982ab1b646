"""The middleware: answers control requests, and passes clients' requests on to the version in service."""

import asyncio
import json
import os

from claas_vllm.alias_folder import AliasFolder
from claas_vllm.answers import naming
from claas_vllm.asgi import (
    App,
    Message,
    Receive,
    Scope,
    Send,
    is_json,
    parse_object,
    read_messages,
    refuse,
    replay,
    saying_version,
    with_length,
    without_own_headers,
)
from claas_vllm.errors import ConfigurationError, ControlError
from claas_vllm.in_band import RECORDED_ROUTES, AnswerWithRecord, wanted_recorder
from claas_vllm.inner_server import MODELS_ROUTE, InnerServer
from claas_vllm.lock import ControlLock, needs_token, route_path
from claas_vllm.own_routes import OwnRoutes
from claas_vllm.served_names import ServedNames
from claas_vllm.settings import Settings, read_settings
from claas_vllm.vllm_host import Host, VllmHost

_WAKING_ROUTES = ("/wake_up", "/resume")
_SLEEP_TIMEOUT_SECONDS = 300.0


class Companion:
    """The middleware. vLLM creates one instance for its app and calls it for every connection and at start-up.

    `names` are the served names. `host` is the server that it runs in, if not vLLM.
    """

    def __init__(self, app: App, host: Host | None = None) -> None:
        self.app = app
        self._host = host or VllmHost()
        self._refusal: str | None = None
        try:
            settings = read_settings(os.environ)
        except ConfigurationError as error:
            # An exception here would mean "no lifespan support", and the server would still start.
            self._refusal = f"claas_vllm: {error}"
            settings = Settings(token_file=None, alias_dir=None, open_paths=())
        self._open_paths = (*settings.open_paths, *self._host.open_paths())
        self._lock = ControlLock(settings.token_file)
        self._server = InnerServer(app)
        self.names = ServedNames(self._server, AliasFolder(settings.alias_dir))
        self._own = OwnRoutes(self.names, self._host, self._unload_idle)
        self._tasks: set[asyncio.Task[None]] = set()
        # Whoever asks for a record shows the token. Without the lock there is none to show.
        self._may_record = settings.token_file is not None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, pass on or refuse one connection; at start-up, restore the aliases."""
        if scope["type"] == "lifespan":
            await self._start(scope, receive, send)
        elif scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
        elif self._refusal is not None:
            await refuse(scope, send, 503, "ServiceUnavailableError", self._refusal)
        elif needs_token(route_path(scope), self._open_paths):
            await self._control(scope, receive, send)
        elif scope["type"] == "http":
            await self._client(scope, receive, send)
        else:
            await self.app(without_own_headers(scope), receive, send)

    async def _start(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._refusal is not None:
            await receive()
            await send({"type": "lifespan.startup.failed", "message": self._refusal})
            return

        async def restore_first(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                try:
                    await self._sleep_once(scope.get("app"))
                except Exception as error:  # noqa: BLE001  It would be taken for "no lifespan support", as above.
                    reason = error if isinstance(error, ControlError) else f"the first sleep: {type(error).__name__}"
                    message = {"type": "lifespan.startup.failed", "message": f"claas_vllm: {reason}"}
                else:
                    if self._host.restores_first():
                        await self.names.restore(scope.get("app"))
                    self._host.started(scope.get("app"))
                    self._own.records = self._may_record and self._host.records(scope.get("app"))
            await send(message)

        await self.app(scope, receive, restore_first)

    async def _sleep_once(self, application: object) -> None:
        """Sleep once at start-up: the first sleep pins host memory for the weights, which takes long."""
        if self._host.sleeps_at_start(application):
            await asyncio.wait_for(self._server.sleep_once(application), _SLEEP_TIMEOUT_SECONDS)

    async def _control(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._lock.opens(scope["headers"]):
            await refuse(
                scope, send, 403, "PermissionDeniedError",
                "this route needs the control token in the header X-Claas-Token (a client's route, if this is one,"
                " must be written without doubled slashes or encoded characters)",
            )  # fmt: skip
            return
        path = route_path(scope)
        if scope["type"] != "http" or not (path == "/claas" or path.startswith("/claas/")):
            if path in _WAKING_ROUTES:
                self.names.table.doubt()
            await self.app(without_own_headers(scope), receive, send)
            return
        try:
            await self._own.respond(scope, receive, send)
        except ControlError as error:
            await refuse(scope, send, error.status, error.kind, str(error))

    async def _client(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = route_path(scope)
        recorder = wanted_recorder(scope["headers"]) if self._own.records and path in RECORDED_ROUTES else None
        if recorder is not None and self._lock.opens(scope["headers"]):
            with recorder:
                await self._answer(without_own_headers(scope), receive, AnswerWithRecord(send, recorder))
        else:
            await self._answer(without_own_headers(scope), receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "GET" and route_path(scope) == MODELS_ROUTE:
            await self._list_models(scope, receive, send)
        elif scope["method"] == "POST" and is_json(scope["headers"]):
            await self._rewrite(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _rewrite(self, scope: Scope, receive: Receive, send: Send) -> None:
        messages = await read_messages(receive)
        if messages[-1]["type"] != "http.request":
            return  # The client disconnected before it had sent its request.
        body = b"".join(message.get("body", b"") for message in messages)
        document = parse_object(body)
        model = document.get("model") if document is not None else None
        # Nothing is awaited from here to `begin`, so no flip can happen between look-up and counting.
        if document is None or not isinstance(model, str):
            await self.app(scope, replay(messages, receive), send)
            return
        target = self.names.table.begin(model)
        if target is None:
            await self.app(scope, replay(messages, receive), self._naming(scope, send, model, model))
            return
        try:
            if target != model:
                document["model"] = target
                body = json.dumps(document, separators=(",", ":")).encode()
                scope = {**scope, "headers": with_length(scope["headers"], len(body))}
                send = saying_version(send, target)
            send = self._naming(scope, send, model, target)
            await self.app(scope, replay([{"type": "http.request", "body": body}], receive), send)
        finally:
            if self.names.table.end(target):
                self._unload_idle(scope.get("app"))

    def _naming(self, scope: Scope, send: Send, asked: str, target: str) -> Send:
        async def names() -> list[str]:
            cards = await self._server.models(scope.get("app"))
            return [card["id"] for card in self.names.cards_for_clients(cards)]

        return naming(send, asked, target, names)

    async def _list_models(self, scope: Scope, receive: Receive, send: Send) -> None:
        start: Message = {}
        chunks: list[bytes] = []

        async def collect(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            elif message["type"] == "http.response.body":
                chunks.append(message.get("body", b""))

        await self.app(scope, receive, collect)
        body = b"".join(chunks)
        document = parse_object(body) if start["status"] == 200 else None
        if document is not None:
            document["data"] = self.names.cards_for_clients(document["data"])
            body = json.dumps(document, separators=(",", ":")).encode()
            start["headers"] = with_length(start["headers"], len(body))
        await send(start)
        await send({"type": "http.response.body", "body": body})

    def _unload_idle(self, application: object) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(self.names.unload_idle(application))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
