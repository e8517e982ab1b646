"""One container: the real follower of pointers, and a server that answers with the version of a name."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path

from aiohttp import web

from claas_bounded.waits import Deadline
from claas_modal_client.connection import ModalConnection
from claas_modal_client.pointers import Pointer, Pointers
from claas_modal_client.volume import ModalVolume
from claas_modal_vllm.errors import VersionFaultError
from claas_modal_vllm.follower import Follower
from claas_modal_vllm.plan import InService

PORT = 8000
VOLUME = "claas-adapters"
LOOK_SECONDS = 0.3


class Versions:
    """Files that need not be brought here, and names in memory. PLAYED_ORDERS names a file with the versions that are
    refused, by served names."""

    def __init__(self) -> None:
        self.names: dict[str, InService] = {}

    def path(self, pointer: Pointer) -> str:
        return str(pointer.weights)

    async def fetch(self, pointer: Pointer, deadline: Deadline) -> str:
        return self.path(pointer)

    async def all(self) -> list[str]:
        return []

    async def forget(self, path: str) -> None:
        pass

    async def served(self) -> Mapping[str, InService]:
        return dict(self.names)

    async def loaded(self) -> frozenset[str]:
        return frozenset(each.path for each in self.names.values())

    async def serve(self, pointer: Pointer, path: str) -> None:
        if pointer.version in _refused().get(pointer.served_name, ()):
            raise VersionFaultError("the adapter does not fit --max-lora-rank")
        self.names[pointer.served_name] = InService(pointer.version, path)

    async def remove(self, served_name: str) -> None:
        self.names.pop(served_name, None)

    async def complete(self, request: web.Request) -> web.Response:
        """As vLLM and its companion answer a completion."""
        body = await request.json()
        found = self.names.get(body["model"])
        if found is None:
            message = f"The model `{body['model']}` does not exist."
            return web.json_response({"error": {"message": message, "code": 404}}, status=404)
        logprobs = {"token_logprobs": [-0.5], "top_logprobs": [{"token_id:7": -0.5}]}
        choice = {"text": "!", "token_ids": [7], "logprobs": logprobs, "finish_reason": "length", "index": 0}
        headers = {"x-claas-version": f"{body['model']}@{found.version}"}
        return web.json_response({"model": body["model"], "choices": [choice]}, headers=headers)


def _refused() -> dict[str, list[int]]:
    orders = Path(os.environ.get("PLAYED_ORDERS", "/nonexistent"))
    found: dict[str, list[int]] = json.loads(orders.read_text()) if orders.exists() else {}
    return found


class PlayedContainer:
    """The container, in a thread: Modal waits until its port is open."""

    def __init__(self, app: str) -> None:
        self._app = app
        self._versions = Versions()

    def start(self) -> None:
        threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True).start()

    async def _run(self) -> None:
        connection = ModalConnection.container()
        follower = Follower(
            Pointers(ModalVolume(connection, VOLUME), self._app),
            self._versions,
            self._versions,
            container=os.environ["MODAL_TASK_ID"],
            max_containers=int(os.environ.get("PLAYED_CONTAINERS", "1")),
        )
        while not await follower.look():  # noqa: ASYNC110  (a pointer is no event)
            await asyncio.sleep(LOOK_SECONDS)
        application = web.Application()
        application.router.add_post("/v1/completions", self._versions.complete)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, os.environ.get("CLAAS_MODAL_LISTEN_HOST", "0.0.0.0"), PORT).start()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await follower.look()
