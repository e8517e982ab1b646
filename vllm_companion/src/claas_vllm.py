"""An ASGI middleware inside vLLM's API server: served names, a lock on control routes, and a memory for both.

Mounted into a stock vLLM image and named by `--middleware claas_vllm.Companion`; needs the standard library
alone. vLLM's runtime LoRA loading allows one API server process (`--api-server-count 1`), and so does this.
`--worker-extension-cls claas_vllm.WeightExport` lets a trainer map the weights that the workers hold.

- Served names: each adapter version is loaded under its own name (`coder@7`); an alias (`coder`) says which of
  them answers. JSON requests whose `model` is an alias are handed on with the target's name, and are answered
  to the end by the version they began with. A target that lost its alias is unloaded when nothing uses it.
- The lock: every route that is not known to be a client's needs the header `X-Claas-Token`.
- Restart: the alias table lies on a volume; at start each target is loaded and its alias put back before the
  server accepts a request.
- Sleep: with `--enable-sleep-mode` the server sleeps once before it accepts a request, because the first sleep
  takes ten seconds more than later ones.

Environment: CLAAS_TOKEN_FILE (file with the control token), CLAAS_LOCK=off (no lock), CLAAS_ALIAS_DIR (folder
of the alias table), CLAAS_OPEN_PATHS (comma-separated further paths that need no token: routes of plugins).

Nothing of a request's body is logged or put into an error.
"""

import asyncio
import base64
import ctypes
import hashlib
import hmac
import json
import logging
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from posixpath import normpath
from typing import Any
from urllib.parse import quote

COMPANION_VERSION = "0.1.0"
SUPPORTED_VLLM_VERSIONS = ("0.32", "0.33")

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

# What clients use, in vLLM 0.32 and 0.33. Whatever is on neither list, and not below a tree, is locked: a
# control route that a later vLLM adds is locked before anyone has heard of it.
OPEN_ROUTES = frozenset(
    {
        "/health", "/ping", "/version", "/load", "/kv_event_sources", "/tokenize", "/detokenize", "/tokenizer_info",
        "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json", "/invocations", "/pooling", "/classify",
        "/score", "/rerank", "/generative_scoring", "/inference/v1/generate", "/v2/embed", "/v2/rerank",
    }
)  # fmt: skip
OPEN_TREES = (
    "/metrics", "/static", "/cohere/v2/chat", "/v1/audio", "/v1/chat", "/v1/completions", "/v1/decisions",
    "/v1/embeddings", "/v1/messages", "/v1/models", "/v1/realtime", "/v1/rerank", "/v1/responses", "/v1/score",
    "/v1/systemone",
)  # fmt: skip
# Control routes of vLLM 0.32 and 0.33, which CLAAS_OPEN_PATHS can't open.
CONTROL_TREES = (
    "/abort_requests", "/adapters", "/claas", "/collective_rpc", "/fault_tolerance", "/finish_weight_update",
    "/get_world_size", "/inference/v1/abort_requests", "/init_weight_transfer_engine", "/is_paused",
    "/is_scaling_elastic_ep", "/is_sleeping", "/pause", "/release_kv_cache_memory", "/reset_encoder_cache",
    "/reset_mm_cache", "/reset_prefix_cache", "/resume", "/scale_elastic_ep", "/server_info",
    "/shutdown_weight_transfer_engine", "/sleep", "/start_draft_weight_update", "/start_profile",
    "/start_weight_update", "/stop_profile", "/update_weight_version", "/update_weights",
    "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/wake_up", "/weight_checker", "/weight_info",
)  # fmt: skip

_ALIAS_ROUTE = "/claas/aliases/"
_MODELS_ROUTE = "/v1/models"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/+-]{0,127}")
_LARGEST_CONTROL_BODY_BYTES = 64 * 1024
_RESTORE_TIMEOUT_SECONDS = 120.0
_SLEEP_TIMEOUT_SECONDS = 300.0

logger = logging.getLogger("vllm.claas_companion")


class CompanionError(Exception):
    """Base of this module's errors."""


class ConfigurationError(CompanionError):
    """The environment variables make no safe companion; the server must not start."""


class ControlError(CompanionError):
    """A control request that can't be done. `status` is the HTTP status of its answer."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


@dataclass(frozen=True)
class Settings:
    """The environment, checked. `token_file` is None when the lock is off, `alias_dir` when nothing persists."""

    token_file: Path | None
    alias_dir: Path | None
    open_paths: tuple[str, ...]


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Settings from environment variables. Raises ConfigurationError with what to set."""
    lock = environment.get("CLAAS_LOCK", "on").strip().lower()
    token_file = environment.get("CLAAS_TOKEN_FILE", "").strip()
    if lock not in ("on", "off"):
        raise ConfigurationError(f"CLAAS_LOCK is {lock!r}; it must be on or off")
    if lock == "on" and not token_file:
        raise ConfigurationError(
            "CLAAS_TOKEN_FILE is not set, so control routes would be open to everyone. Set it to the path of a file"
            " with the control token (a mounted Secret), or set CLAAS_LOCK=off to do without the lock"
        )
    if lock == "off":
        logger.warning("CLAAS_LOCK=off: control routes are open to everyone who reaches this server")
    alias_dir = environment.get("CLAAS_ALIAS_DIR", "").strip()
    extra = tuple(path.strip() for path in environment.get("CLAAS_OPEN_PATHS", "").split(",") if path.strip())
    for path in extra:
        if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", path):
            raise ConfigurationError(f"CLAAS_OPEN_PATHS has {path!r}; a path looks like /my/route")
    return Settings(
        token_file=None if lock == "off" else Path(token_file),
        alias_dir=Path(alias_dir) if alias_dir else None,
        open_paths=extra,
    )


def route_path(scope: Scope) -> str:
    """The path that vLLM's router matches: the decoded path without the root path, as Starlette computes it."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/"):
        return path[len(root) :]
    return path


def needs_token(path: str, extra_open: tuple[str, ...] = ()) -> bool:
    """Whether a route path (`route_path`) is locked. Known client routes, written plainly, are not."""
    plain = path[:-1] if path.endswith("/") else path
    # The router matches paths as they are written. One that could mean another after some rewriting (//, ..,
    # a percent sign that survived decoding, a backslash) is no client's, so nothing is lost by locking it.
    if not re.fullmatch(r"(/[A-Za-z0-9._~:@+-]+)+", plain) or normpath(plain) != plain:
        return True
    if _below(plain, CONTROL_TREES):
        return True
    return plain not in OPEN_ROUTES and not _below(plain, OPEN_TREES) and not _below(plain, extra_open)


def _below(path: str, trees: Iterable[str]) -> bool:
    return any(path == tree or path.startswith(f"{tree}/") for tree in trees)


class ControlLock:
    """Compares the header X-Claas-Token with the content of the token file, in constant time."""

    def __init__(self, token_file: Path | None) -> None:
        self._token_file = token_file

    def opens(self, headers: Headers) -> bool:
        """Whether these headers carry the token. The file is read each time: Secrets are rotated."""
        if self._token_file is None:
            return True
        given = [value for name, value in headers if name.lower() == b"x-claas-token"]
        try:
            token = self._token_file.read_bytes().strip()
        except OSError as error:
            logger.error("The control token can't be read from %s (%s); all is locked", self._token_file, error)
            return False
        if not token:
            logger.error("The control token file %s is empty; all is locked", self._token_file)
            return False
        return len(given) == 1 and hmac.compare_digest(given[0].strip(), token)


@dataclass(frozen=True)
class Alias:
    """Requests for `name` are answered by `target`, which is version `version` loaded from `path`."""

    name: str
    target: str
    path: str
    version: int


def parse_alias(name: str, body: bytes) -> Alias:
    """An alias from JSON with target, path and version. Raises ControlError (400) naming the field."""
    try:
        document = json.loads(body)
    except ValueError:
        raise ControlError(400, "BadRequestError", "the body is not JSON") from None
    if not isinstance(document, dict):
        raise ControlError(400, "BadRequestError", "the body must be an object with target, path and version")
    target, path, version = (document.get(field) for field in ("target", "path", "version"))
    if not _NAME.fullmatch(name):
        raise ControlError(400, "BadRequestError", f"the served name must match {_NAME.pattern}")
    if not isinstance(target, str) or not _NAME.fullmatch(target) or target == name:
        raise ControlError(
            400, "BadRequestError", f"target must be another name, matching {_NAME.pattern}, such as {name}@1"
        )
    if not isinstance(path, str) or not path:
        raise ControlError(400, "BadRequestError", "path must be the path the target was loaded from")
    if not isinstance(version, int) or isinstance(version, bool) or version < 0:
        raise ControlError(400, "BadRequestError", "version must be a whole number, 0 or more")
    return Alias(name=name, target=target, path=path, version=version)


class AliasTable:
    """Which target answers which name, and how many requests each target is answering."""

    def __init__(self) -> None:
        self._aliases: dict[str, Alias] = {}
        self._in_flight: Counter[str] = Counter()
        self._retired: dict[str, str] = {}

    def __iter__(self) -> Iterator[Alias]:
        return iter(sorted(self._aliases.values(), key=lambda alias: alias.name))

    def __len__(self) -> int:
        return len(self._aliases) + len(self._retired)

    def get(self, name: str) -> Alias | None:
        """The alias of that name, or None."""
        return self._aliases.get(name)

    def put(self, alias: Alias) -> None:
        """Point the alias's name at its target; the target it leaves is retired unless another name uses it."""
        old = self._aliases.get(alias.name)
        self._aliases[alias.name] = alias
        self._retired.pop(alias.target, None)
        if old is not None:
            self._retire(old)

    def remove(self, name: str) -> None:
        """Forget a name and retire its target."""
        self._retire(self._aliases.pop(name))

    def _retire(self, old: Alias) -> None:
        if all(alias.target != old.target for alias in self._aliases.values()):
            self._retired[old.target] = old.name

    def begin(self, model: str) -> str | None:
        """Count a request for a name or target in, and return the target that answers it; None for others."""
        alias = self._aliases.get(model)
        target = alias.target if alias else model
        if alias is None and target not in self._retired and target not in self._targets():
            return None
        self._in_flight[target] += 1
        return target

    def end(self, target: str) -> bool:
        """Count a request out. True when it was the last on a retired target."""
        self._in_flight[target] -= 1
        if self._in_flight[target] <= 0:
            del self._in_flight[target]
        return target in self._retired and target not in self._in_flight

    def idle_retired(self) -> list[str]:
        """Targets that nothing points at and no request uses."""
        return [target for target in self._retired if target not in self._in_flight]

    def forget(self, target: str) -> None:
        """Drop a retired target: it has been unloaded."""
        self._retired.pop(target, None)

    def in_flight(self, alias: Alias) -> dict[str, int]:
        """Requests being answered under an alias's name, by target."""
        targets = [alias.target, *(target for target, name in self._retired.items() if name == alias.name)]
        return {target: self._in_flight[target] for target in targets}

    def _targets(self) -> set[str]:
        return {alias.target for alias in self._aliases.values()}


class AliasFolder:
    """The alias table on the volume: one JSON file for each name, replaced whole."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self.persisted = self._try(self._touch)

    def save(self, alias: Alias) -> None:
        """Write an alias; when that fails, say so in the log and in `persisted`."""
        text = json.dumps(asdict(alias))
        self.persisted = self._try(lambda folder: _write_whole(self._file(folder, alias.name), text))

    def remove(self, name: str) -> None:
        """Delete an alias's file."""
        self.persisted = self._try(lambda folder: self._file(folder, name).unlink(missing_ok=True))

    def read(self) -> list[Alias]:
        """All aliases that can be read; files that can't are named in the log and skipped."""
        found: list[Alias] = []
        if self._folder is None or not self._folder.is_dir():
            return found
        for file in sorted(self._folder.glob("*.json")):
            try:
                document = json.loads(file.read_bytes())
                alias = parse_alias(str(document["name"]), json.dumps(document).encode())
            except (OSError, ValueError, KeyError, TypeError, ControlError) as error:
                logger.warning("Skipping the alias file %s: %s", file, error or type(error).__name__)
                continue
            if self._file(self._folder, alias.name) == file:
                found.append(alias)
            else:
                logger.warning("Skipping the alias file %s: it names %s", file, alias.name)
        return found

    @staticmethod
    def _file(folder: Path, name: str) -> Path:
        return folder / f"{quote(name, safe='')}.json"

    @staticmethod
    def _touch(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass

    def _try(self, write: Callable[[Path], None]) -> bool:
        if self._folder is None:
            return False
        try:
            write(self._folder)
        except OSError as error:
            logger.warning("Aliases can't be kept in %s (%s); a restart will forget them", self._folder, error)
            return False
        return True


def _write_whole(file: Path, text: str) -> None:
    """Write beside, fsync, rename: a reader or a crash sees the old file or the new one."""
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "w") as stream:
            os.fchmod(handle, 0o644)
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).replace(file)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise
    directory = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class InnerServer:
    """vLLM's own routes, called inside the process, below this middleware and its lock."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def models(self, application: object) -> list[dict[str, Any]]:
        """The cards of `/v1/models` as vLLM makes them, without aliases."""
        status, body = await self.call(application, "GET", _MODELS_ROUTE)
        if status != 200:
            raise ControlError(500, "InternalServerError", f"vLLM answers {_MODELS_ROUTE} with HTTP {status}")
        cards: list[dict[str, Any]] = json.loads(body)["data"]
        return cards

    async def load(self, application: object, name: str, path: str) -> None:
        """Load an adapter, or leave it when it is loaded from that path. Raises ControlError."""
        status, body = await self.call(
            application, "POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path}
        )
        if status == 200:
            return
        card = next((card for card in await self.models(application) if card["id"] == name), None)
        if card is None or not _same_path(card.get("root"), path):
            raise ControlError(500, "InternalServerError", f"vLLM refused with HTTP {status}: {_message(body)}")

    async def unload(self, application: object, name: str) -> bool:
        """Unload an adapter. False when vLLM did not."""
        status, _ = await self.call(application, "POST", "/v1/unload_lora_adapter", {"lora_name": name})
        return status in (200, 404)

    async def sleep_once(self, application: object) -> None:
        """Sleep and wake. Raises ControlError when it can't wake."""
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
        """One request to the app below; returns the status and the whole body."""
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

        await self._app(scope, _replay([{"type": "http.request", "body": body}], _never), send)
        return status, b"".join(answer)


class Companion:
    """The middleware. vLLM makes one of it for its app and calls it for every connection and for start-up."""

    def __init__(self, app: App) -> None:
        self.app = app
        self._refusal: str | None = None
        try:
            settings = read_settings(os.environ)
        except ConfigurationError as error:
            # An exception here would be taken for "no lifespan support" and the server would start all the same.
            self._refusal = f"claas_vllm: {error}"
            settings = Settings(token_file=None, alias_dir=None, open_paths=())
        self._open_paths = settings.open_paths
        self._lock = ControlLock(settings.token_file)
        self._aliases = AliasTable()
        self._folder = AliasFolder(settings.alias_dir)
        self._server = InnerServer(app)
        self._changing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._gpu_uuids: list[str] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, hand on or refuse one connection; restore the aliases when the server starts."""
        if scope["type"] == "lifespan":
            await self._start(scope, receive, send)
        elif scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
        elif self._refusal is not None:
            await _refuse(scope, send, 503, "ServiceUnavailableError", self._refusal)
        elif needs_token(route_path(scope), self._open_paths):
            await self._control(scope, receive, send)
        elif scope["type"] == "http":
            await self._client(scope, receive, send)
        else:
            await self.app(scope, receive, send)

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
                    await self._restore(scope.get("app"))
            await send(message)

        await self.app(scope, receive, restore_first)

    async def _sleep_once(self, application: object) -> None:
        """The first sleep pins the host's memory for the weights: now, and not while clients wait."""
        if _has_sleep_mode(application):
            await asyncio.wait_for(self._server.sleep_once(application), _SLEEP_TIMEOUT_SECONDS)

    async def _restore(self, application: object) -> None:
        for alias in self._folder.read():
            try:
                async with self._changing:
                    load = self._server.load(application, alias.target, alias.path)
                    await asyncio.wait_for(load, _RESTORE_TIMEOUT_SECONDS)
                    self._aliases.put(alias)
            except Exception as error:  # noqa: BLE001  One adapter must not keep the server from starting.
                reason = error if isinstance(error, ControlError) else type(error).__name__
                logger.warning("%s is not served: %s can't be loaded: %s", alias.name, alias.path, reason)
            else:
                logger.info("%s is served by %s from %s again", alias.name, alias.target, alias.path)

    async def _control(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._lock.opens(scope["headers"]):
            await _refuse(
                scope, send, 403, "PermissionDeniedError",
                "this route needs the control token in the header X-Claas-Token (a client's route, if this is one,"
                " must be written without doubled slashes or encoded characters)",
            )  # fmt: skip
            return
        path = route_path(scope)
        if scope["type"] != "http" or not (path == "/claas" or path.startswith("/claas/")):
            await self.app(scope, receive, send)
            return
        try:
            await _answer(send, 200, await self._own_route(scope, path, receive))
        except ControlError as error:
            await _refuse(scope, send, error.status, error.kind, str(error))

    async def _own_route(self, scope: Scope, path: str, receive: Receive) -> dict[str, Any]:
        application, method = scope.get("app"), scope["method"]
        if path == "/claas/status" and method == "GET":
            return await self._status(application)
        name = path.removeprefix(_ALIAS_ROUTE)
        if not path.startswith(_ALIAS_ROUTE) or not name:
            raise ControlError(
                404, "NotFoundError", "the companion has GET /claas/status, PUT and DELETE /claas/aliases/{name}"
            )
        if method == "PUT":
            await self._point(application, parse_alias(name, await _read_body(receive)))
        elif method == "DELETE":
            await self._delete(name)
        else:
            raise ControlError(405, "MethodNotAllowedError", "an alias has PUT and DELETE")
        self._spawn(self._unload_idle(application))
        return await self._status(application)

    async def _point(self, application: object, alias: Alias) -> None:
        async with self._changing:
            cards = {card["id"]: card for card in await self._server.models(application)}
            target = cards.get(alias.target)
            if target is None or target.get("parent") is None:
                raise ControlError(
                    409, "ConflictError",
                    f"{alias.target} is not a loaded adapter; load it by /v1/load_lora_adapter first",
                )  # fmt: skip
            if not _same_path(target.get("root"), alias.path):
                raise ControlError(
                    409, "ConflictError", f"{alias.target} is loaded from {target.get('root')}, not {alias.path}"
                )
            if alias.name in cards and cards[alias.name].get("parent") is None:
                raise ControlError(409, "ConflictError", f"{alias.name} is the base model; serve under another name")
            if alias != self._aliases.get(alias.name) or not self._folder.persisted:
                # On the volume first: a crash in between comes back with the version that was asked for.
                await asyncio.to_thread(self._folder.save, alias)
                self._aliases.put(alias)
                logger.info("%s is served by %s from %s", alias.name, alias.target, alias.path)

    async def _delete(self, name: str) -> None:
        async with self._changing:
            # The file goes even when the name is not served: it may be one that could not be restored.
            await asyncio.to_thread(self._folder.remove, name)
            if self._aliases.get(name) is None:
                raise ControlError(404, "NotFoundError", f"{name} is not a served name")
            self._aliases.remove(name)
            logger.info("%s is no longer served", name)

    async def _status(self, application: object) -> dict[str, Any]:
        if self._gpu_uuids is None:
            self._gpu_uuids = await asyncio.to_thread(visible_gpu_uuids, os.environ)
        roots = {card["id"]: card.get("root") for card in await self._server.models(application)}
        version = _vllm_version()
        return {
            "companion_version": COMPANION_VERSION,
            "vllm_version": version,
            "supported_vllm_versions": list(SUPPORTED_VLLM_VERSIONS),
            "vllm_supported": is_supported(version),
            "aliases": [
                {
                    **asdict(alias),
                    "loaded": _same_path(roots.get(alias.target), alias.path),
                    "in_flight": self._aliases.in_flight(alias),
                }
                for alias in self._aliases
            ],
            "gpu_uuids": self._gpu_uuids,
            "persisted": self._folder.persisted,
        }

    async def _client(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._aliases:
            await self.app(scope, receive, send)
        elif scope["method"] == "GET" and route_path(scope) == _MODELS_ROUTE:
            await self._list_models(scope, receive, send)
        elif scope["method"] == "POST" and _is_json(scope["headers"]):
            await self._rewrite(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _rewrite(self, scope: Scope, receive: Receive, send: Send) -> None:
        messages = await _read_messages(receive)
        if messages[-1]["type"] != "http.request":
            return  # The client hung up before it had sent its request.
        body = b"".join(message.get("body", b"") for message in messages)
        document = _parse_object(body)
        model = document.get("model") if document is not None else None
        # From here to `begin` nothing is awaited, so that no flip comes between look-up and counting.
        target = self._aliases.begin(model) if isinstance(model, str) else None
        if document is None or target is None:
            await self.app(scope, _replay(messages, receive), send)
            return
        try:
            if target != model:
                document["model"] = target
                body = json.dumps(document, separators=(",", ":")).encode()
                scope = {**scope, "headers": _with_length(scope["headers"], len(body))}
                send = _saying_version(send, target)
            await self.app(scope, _replay([{"type": "http.request", "body": body}], receive), send)
        finally:
            if self._aliases.end(target):
                self._spawn(self._unload_idle(scope.get("app")))

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
        document = _parse_object(body) if start["status"] == 200 else None
        if document is not None:
            cards = {card["id"]: card for card in document["data"]}
            for alias in self._aliases:
                if alias.target in cards:
                    cards[alias.name] = {**cards[alias.target], "id": alias.name}
            document["data"] = list(cards.values())
            body = json.dumps(document, separators=(",", ":")).encode()
            start["headers"] = _with_length(start["headers"], len(body))
        await send(start)
        await send({"type": "http.response.body", "body": body})

    async def _unload_idle(self, application: object) -> None:
        async with self._changing:
            for target in self._aliases.idle_retired():
                try:
                    unloaded = await self._server.unload(application, target)
                except Exception as error:  # noqa: BLE001  vLLM's failure; tried again after the next request.
                    logger.warning("%s can't be unloaded yet: %s", target, type(error).__name__)
                    continue
                if unloaded:
                    self._aliases.forget(target)
                    logger.info("%s is unloaded", target)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class WeightExport:
    """Mixed into vLLM's worker: tells a trainer on the same GPU where the served weights lie.

    Called by `POST /collective_rpc {"method": "claas_export_weights"}`, which the lock guards: a handle lets its
    holder read the weights, and write them.
    """

    vllm_config: Any
    model_runner: Any

    def claas_export_weights(self) -> dict[str, Any]:
        """`tensors`: name (without `.base_layer`), shape, dtype, handle (base64) and offset in bytes of each
        parameter; `fingerprint`: of names, shapes and dtypes. Or `refusal`: why they can't be shared."""
        refusal = sharing_refusal(self.vllm_config)
        if refusal is not None:
            return {"refusal": refusal}
        try:
            tensors = [_exported(name, p) for name, p in self.model_runner.model.named_parameters()]
        except CompanionError as error:
            return {"refusal": str(error)}
        digest = hashlib.sha256()
        for tensor in sorted(tensors, key=lambda found: str(found["name"])):
            digest.update(f"{tensor['name']} {tensor['shape']} {tensor['dtype']}\n".encode())
        return {"refusal": None, "fingerprint": digest.hexdigest(), "tensors": tensors}


def sharing_refusal(config: Any) -> str | None:
    """Why the weights of a vLLM so configured can't be shared, or None."""
    if config.model_config.enable_sleep_mode:
        return "its memory belongs to the sleep mode's allocator; start vLLM without --enable-sleep-mode"
    if config.model_config.quantization is not None:
        return f"they are quantised ({config.model_config.quantization})"
    if config.parallel_config.world_size != 1:
        return f"they are spread over {config.parallel_config.world_size} GPUs"
    if config.device_config.device_type != "cuda":
        return f"they are not on a GPU but on {config.device_config.device_type}"
    return None


def _exported(name: str, parameter: Any) -> dict[str, Any]:
    dtype = str(parameter.dtype).removeprefix("torch.")
    if dtype not in ("bfloat16", "float16") or not parameter.is_contiguous():
        raise CompanionError(f"{name} is {dtype}, or repacked for a kernel")
    handle, offset = _ipc_handle(parameter.data_ptr())
    return {
        "name": name.replace(".base_layer", ""), "shape": list(parameter.shape), "dtype": dtype,
        "handle": base64.b64encode(handle).decode(), "offset": offset,
    }  # fmt: skip


def _ipc_handle(address: int) -> tuple[bytes, int]:
    """The handle of the allocation that an address lies in, and how many bytes into it."""
    driver = ctypes.CDLL("libcuda.so.1")
    base, size, handle = ctypes.c_uint64(), ctypes.c_size_t(), (ctypes.c_byte * 64)()
    code = driver.cuMemGetAddressRange_v2(ctypes.byref(base), ctypes.byref(size), ctypes.c_uint64(address))
    code = code or driver.cuIpcGetMemHandle(ctypes.byref(handle), base)
    if code != 0:
        raise CompanionError(
            f"CUDA can't export its memory (error {code}); PyTorch's expandable segments must be off in vLLM"
        )
    return bytes(handle), address - base.value


def is_supported(vllm_version: str | None) -> bool:
    """Whether this companion was tested against that vLLM release."""
    return vllm_version is not None and ".".join(vllm_version.split(".")[:2]) in SUPPORTED_VLLM_VERSIONS


def visible_gpu_uuids(environment: Mapping[str, str]) -> list[str]:
    """UUIDs of the GPUs (or MIG slices) this process may use, by NVML: that makes no CUDA context.

    [] without an NVIDIA driver. CUDA_VISIBLE_DEVICES narrows them, by index in PCI order or by UUID.
    """
    nvml = _import_nvml()
    if nvml is None:
        return []
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return []
    try:
        uuids = [uuid for index in range(nvml.nvmlDeviceGetCount()) for uuid in _device_uuids(nvml, index)]
    except nvml.NVMLError as error:
        logger.warning("NVML can't list the GPUs: %s", error)
        return []
    finally:
        nvml.nvmlShutdown()
    return narrow_to_visible(uuids, environment.get("CUDA_VISIBLE_DEVICES"))


def narrow_to_visible(uuids: list[str], visible: str | None) -> list[str]:
    """Those of `uuids` that CUDA_VISIBLE_DEVICES names, in its order; as CUDA does, up to the first bad entry."""
    if visible is None:
        return uuids
    chosen: list[str] = []
    for entry in (entry.strip() for entry in visible.split(",")):
        if re.fullmatch(r"[0-9]+", entry):
            found = uuids[int(entry) : int(entry) + 1]
        else:
            found = [uuid for uuid in uuids if entry and uuid.startswith(entry)]
        if len(found) != 1:
            break
        chosen += found
    return chosen


def _device_uuids(nvml: Any, index: int) -> list[str]:
    device = nvml.nvmlDeviceGetHandleByIndex(index)
    slices = []
    try:
        count = nvml.nvmlDeviceGetMaxMigDeviceCount(device) if nvml.nvmlDeviceGetMigMode(device)[0] else 0
    except nvml.NVMLError:
        count = 0  # This GPU knows no MIG.
    for number in range(count):
        try:
            slices.append(_text(nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetMigDeviceHandleByIndex(device, number))))
        except nvml.NVMLError:
            continue  # No slice under this number, or not ours.
    return slices or [_text(nvml.nvmlDeviceGetUUID(device))]


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _import_nvml() -> Any:
    # vLLM brings a copy. It is taken only inside vLLM: elsewhere it would import all of vLLM, for many seconds.
    for name in ("pynvml", "vllm.third_party.pynvml"):
        if name.startswith("vllm.") and "vllm" not in sys.modules:
            continue
        try:
            return import_module(name)
        except ImportError:
            continue
    return None


def _vllm_version() -> str | None:
    # Already imported wherever vLLM runs; importing it for its version elsewhere would take half a minute.
    version = getattr(sys.modules.get("vllm.version"), "__version__", None)
    return version if isinstance(version, str) else None


def _api_key(application: object) -> str | None:
    """The key vLLM's own authentication wants below this middleware: --api-key, or else VLLM_API_KEY."""
    keys = getattr(getattr(getattr(application, "state", None), "args", None), "api_key", None)
    if isinstance(keys, str):
        return keys
    return next((key for key in keys or [] if key), None) or os.environ.get("VLLM_API_KEY") or None


def _has_sleep_mode(application: object) -> bool:
    config = getattr(getattr(application, "state", None), "vllm_config", None)
    return getattr(getattr(config, "model_config", None), "enable_sleep_mode", False) is True


def _same_path(left: object, right: str) -> bool:
    return isinstance(left, str) and normpath(left) == normpath(right)


def _message(body: bytes) -> str:
    document = _parse_object(body) or {}
    error = document.get("error")
    return str(error.get("message"))[:500] if isinstance(error, dict) else "no message"


def _parse_object(body: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _is_json(headers: Headers) -> bool:
    kinds = [value for name, value in headers if name.lower() == b"content-type"]
    return any(kind.split(b";")[0].strip().lower() == b"application/json" for kind in kinds)


def _with_length(headers: Iterable[tuple[bytes, bytes]], length: int) -> Headers:
    dropped = (b"content-length", b"transfer-encoding")
    kept = [(name, value) for name, value in headers if name.lower() not in dropped]
    return [*kept, (b"content-length", str(length).encode())]


def _saying_version(send: Send, target: str) -> Send:
    async def say(message: Message) -> None:
        # Not to those whom vLLM's own authentication turned away.
        if message["type"] == "http.response.start" and message["status"] != 401:
            message = {**message, "headers": [*message.get("headers", []), (b"x-claas-version", target.encode())]}
        await send(message)

    return say


async def _read_messages(receive: Receive) -> list[Message]:
    """A request's messages, up to the last of its body or to the disconnect."""
    messages = [await receive()]
    while messages[-1]["type"] == "http.request" and messages[-1].get("more_body", False):
        messages.append(await receive())
    return messages


async def _read_body(receive: Receive) -> bytes:
    body: bytes = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > _LARGEST_CONTROL_BODY_BYTES:
            raise ControlError(413, "BadRequestError", f"the body exceeds {_LARGEST_CONTROL_BODY_BYTES} bytes")
        if not message.get("more_body", False):
            return body


def _replay(messages: list[Message], then: Receive) -> Receive:
    """A `receive` that gives messages already read, and then those that follow."""
    waiting = iter(messages)

    async def receive() -> Message:
        message = next(waiting, None)
        return message if message is not None else await then()

    return receive


async def _never() -> Message:
    """The disconnect of a caller that never hangs up."""
    await asyncio.Event().wait()
    return {"type": "http.disconnect"}


async def _answer(send: Send, status: int, document: Mapping[str, Any]) -> None:
    body = json.dumps(document).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _refuse(scope: Scope, send: Send, status: int, kind: str, message: str) -> None:
    """An error in OpenAI's shape; a websocket is closed before it is accepted."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": ""})
        return
    error = {"message": message, "type": kind, "param": None, "code": status}
    await _answer(send, status, {"error": error})
