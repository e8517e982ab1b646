"""The deployed app on the peer, with versions to point at, and requests through Modal's front."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx

from claas_bounded.waits import Deadline
from claas_modal_client.addresses import VolumeAddress
from claas_modal_client.connection import ModalAccount, ModalConnection, ModalToken
from claas_modal_client.folders import store
from claas_modal_client.pointers import Pointer, PointerProbe, Pointers, Receipt
from claas_modal_client.volume import ModalVolume
from tests.peers.modal.server import PROXY_KEY, PROXY_SECRET, TOKEN_ID, TOKEN_SECRET, ModalPeer

T = TypeVar("T")

APP = "claas-vllm"
SERVER = "Vllm"
MODEL = "acme/tiny"
CONTROL_TOKEN = "a-control-token"
UID = "0b5c0f6e-0000-4000-8000-000000000001"
START_SECONDS = 480.0
FOLLOW_SECONDS = 60.0
SETTINGS = {
    "CLAAS_MODAL_GPU": "none",
    "CLAAS_MODAL_MODEL": MODEL,
    "CLAAS_MODAL_MODEL_NAME": "tiny",
    "CLAAS_MODAL_MAX_LORA_RANK": "8",
    "CLAAS_MODAL_MAX_CONTAINERS": "2",
    "CLAAS_MODAL_IDLE_SECONDS": "600",
    "CLAAS_MODAL_GRACE_SECONDS": "20",
    "CLAAS_MODAL_VLLM_ARGS": "--max-model-len 2048 --max-num-seqs 16 --dtype float32 --enforce-eager",
}
CONTAINER_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_HOST_IP": "127.0.0.1",
    "TORCHDYNAMO_DISABLE": "1",
    "DO_NOT_TRACK": "1",
    "OMP_NUM_THREADS": "1",
}
HEADERS = {"Modal-Key": PROXY_KEY, "Modal-Secret": PROXY_SECRET}


@dataclass
class ModalSite:
    """The peer, and the folders of versions on this machine."""

    peer: ModalPeer
    versions: list[Path]

    def deploy(self, **settings: str) -> str:
        """Run `modal deploy` as a user does; returns what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "modal", "deploy", "-m", "claas_modal_vllm.app"],
            env={**os.environ, **self.peer.environment(), **SETTINGS, **settings},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def url(self) -> str:
        return self.peer.server_url(APP, SERVER)

    def ask(self, model: str, prompt: str = "Say it:", **fields: object) -> httpx.Response:
        """A small completion through the front."""
        body = {"model": model, "prompt": prompt, "max_tokens": 4, "temperature": 0.0, **fields}
        return httpx.post(f"{self.url}/v1/completions", json=body, headers=HEADERS, timeout=120.0, trust_env=False)

    def version(self, model: str = "tone") -> str | None:
        """The version that answers, by the companion's header; None for an error."""
        answer = self.ask(model)
        return answer.headers.get("x-claas-version") if answer.is_success else None

    def upload(self, version: int) -> VolumeAddress:
        """Upload a version's files as a trainer does."""
        folder = self.versions[version - 1]
        files = {name: folder / name for name in ("adapter_config.json", "adapter_model.safetensors")}
        target = f"adapters/{UID}/{version}-{version:016x}"
        return self._run(lambda c: store(c, "claas-adapters", target, files, Deadline.after(60.0)))

    def point(self, name: str, version: int, address: VolumeAddress | None = None) -> Pointer:
        """Point a name to a version, as the operator does."""
        pointer = Pointer(
            served_name=name,
            adapter_uid=UID,
            version=version,
            weights=address or self.upload(version),
            probe=PointerProbe(prompt="Hello", max_tokens=4),
        )
        self._run(lambda c: pointers(c).write(pointer, Deadline.after(60.0)))
        return pointer

    def unpoint(self, name: str) -> None:
        """Remove a name's pointer."""
        self._run(lambda c: pointers(c).remove(name, Deadline.after(60.0)))

    def receipts(self, name: str) -> tuple[Receipt, ...]:
        """What containers said of a name, the latest first."""
        return self._run(lambda c: pointers(c).receipts(name, Deadline.after(60.0)))

    def logs(self) -> str:
        """What all containers wrote."""
        return "\n".join(each.log for each in self.peer.containers(alive=False))

    def _run(self, work: Callable[[ModalConnection], Awaitable[T]]) -> T:
        async def run() -> T:
            connection = ModalConnection(ModalAccount(ModalToken(TOKEN_ID, TOKEN_SECRET), server_url=self.peer.url))
            try:
                return await work(connection)
            finally:
                await connection.close()

        return asyncio.run(run())


def pointers(connection: ModalConnection) -> Pointers:
    return Pointers(ModalVolume(connection, "claas-adapters"), APP)


def eventually(seconds: float, what: Callable[[], T | None], every: float = 0.3) -> T:
    """The first true answer."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(every)
    return found


@dataclass(frozen=True)
class StreamedAnswer:
    begun: float
    """By the monotonic clock."""
    version: str
    end: str
    """`whole`, `cut` or `status ...`."""


@dataclass
class Streams:
    """Requests by several clients, one after the other each, streamed, until `stop`."""

    site: ModalSite
    clients: int = 3
    answers: list[StreamedAnswer] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Streams:
        self._threads = [threading.Thread(target=self._client) for _ in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def failed(self) -> list[StreamedAnswer]:
        return [each for each in self.answers if each.end != "whole"]

    def _client(self) -> None:
        with httpx.Client(headers=HEADERS, timeout=120.0, trust_env=False) as client:
            while not self._over.is_set():
                begun = time.monotonic()
                self.answers.append(StreamedAnswer(begun, *self._stream(client)))
                self._over.wait(0.2)

    def _stream(self, client: httpx.Client) -> tuple[str, str]:
        body = {"model": "tone", "prompt": "Tell me:", "max_tokens": 48, "temperature": 0.0, "stream": True}
        version, last = "", ""
        try:
            with client.stream("POST", f"{self.site.url}/v1/completions", json=body) as answer:
                if answer.status_code != httpx.codes.OK:
                    return "", f"status {answer.status_code}"
                version = answer.headers["x-claas-version"]
                for line in answer.iter_lines():
                    if line.startswith("data: "):
                        last = line.removeprefix("data: ")
                        assert last == "[DONE]" or json.loads(last)["model"] == "tone"
        except httpx.TransportError:
            return version, "cut"
        return version, "whole" if last == "[DONE]" else "cut"
