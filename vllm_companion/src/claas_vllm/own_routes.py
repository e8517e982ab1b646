"""The companion's own routes below /claas, behind the lock."""

import asyncio
from collections.abc import Callable
from typing import Any

from claas_vllm.adapter_export import send_adapter
from claas_vllm.aliases import Alias, parse_alias
from claas_vllm.asgi import Receive, Scope, Send, answer, read_body
from claas_vllm.errors import ControlError
from claas_vllm.lock import route_path
from claas_vllm.served_names import ServedNames
from claas_vllm.vllm_host import Host

COMPANION_VERSION = "0.1.0"

_ALIASES = "/claas/aliases/"
_ADAPTERS = "/claas/adapters/"
_EXPORT = "/export"


class OwnRoutes:
    """Answers the requests below /claas. `records`: whether this companion records; `changed` is called after a
    change of a served name."""

    def __init__(self, names: ServedNames, host: Host, changed: Callable[[object], None]) -> None:
        self.records = False
        self._names = names
        self._host = host
        self._changed = changed

    async def respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request whose token was checked. Raises ControlError before the answer begins."""
        application, method, path = scope.get("app"), scope["method"], route_path(scope)
        if (method, path) == ("GET", "/claas/status"):
            await answer(send, 200, await self._status(application))
        elif (method, path) == ("GET", "/claas/models"):
            await answer(send, 200, {"object": "list", "data": await self._names.cards(application)})
        elif path.startswith(_ALIASES) and path != _ALIASES:
            await self._change(application, method, path.removeprefix(_ALIASES), receive)
            await answer(send, 200, await self._status(application))
        elif method == "GET" and path.startswith(_ADAPTERS) and path.endswith(_EXPORT):
            await send_adapter(self._served(path[len(_ADAPTERS) : -len(_EXPORT)]), receive, send)
        else:
            raise ControlError(
                404, "NotFoundError",
                "the companion has GET /claas/status, GET /claas/models, PUT and DELETE /claas/aliases/{name},"
                " GET /claas/adapters/{name}/export",
            )  # fmt: skip

    async def _change(self, application: object, method: str, name: str, receive: Receive) -> None:
        if method == "PUT":
            await self._names.point(application, parse_alias(name, await read_body(receive)))
        elif method == "DELETE":
            await self._names.delete(name)
        else:
            raise ControlError(405, "MethodNotAllowedError", "an alias has PUT and DELETE")
        self._changed(application)

    def _served(self, name: str) -> Alias:
        alias = self._names.table.get(name)
        if alias is None:
            raise ControlError(404, "NotFoundError", f"{name} is not a served name")
        return alias

    async def _status(self, application: object) -> dict[str, Any]:
        # NVML may take its time.
        about = await asyncio.to_thread(self._host.about, application)
        return {
            "companion_version": COMPANION_VERSION,
            **about,
            "aliases": await self._names.describe(application),
            "persisted": self._names.persisted,
            "records": self.records,
        }
