"""A small HTTP server with vLLM's sleep routes, for tests of whoever must wake it. It does sleep and wake.

It takes no adapter: every load is refused. It can also die, with or without its process, and count tokens.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

TOKEN = "a-control-token"


class SleepingServer:
    """Its state, and how it misbehaves: wakes that fail, a lock, a drain that does not end, a refused sleep.

    `gpu_uuids`: what its companion says; None means that it has no companion.
    """

    def __init__(self, *, wake_failures: int = 0, locked: bool = False, hangs: bool = False) -> None:
        self.asleep = False
        self.calls: list[str] = []
        self.slept_at: float | None = None
        self.woken_at: float | None = None
        self.wake_failures = wake_failures
        self.locked = locked
        self.hangs = hangs
        self.refuses_sleep = False
        self.refused = threading.Event()
        """Set once its lock has turned a call away."""
        self.gpu_uuids: list[str] | None = None
        self.aliases: list[dict[str, object]] = []
        """What its companion serves, as `/claas/status` lists it."""
        self.engine_dead = False
        self.sleeps_over_load = False
        """Whether somebody puts it to sleep while it loads a version."""
        self.tokens: Callable[[], int] | None = None
        """What its counter of generated tokens says; None: it has no metrics."""
        self.running = 1
        self.export: object = None
        """What its workers answer when they are asked for their weights; None: they have no such method."""
        self.lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(timeout=5)

    def answer(self, method: str, path: str) -> tuple[int, object]:
        """The status and body of one call."""
        with self.lock:
            self.calls.append(f"{method} {path}")
            match path:
                case "/health":
                    return (503, {}) if self.engine_dead else (200, {})
                case "/metrics" if self.tokens is not None:
                    return 200, (
                        f"vllm:num_requests_running {self.running}\n"
                        "vllm:num_requests_waiting 0\n"
                        f'vllm:generation_tokens_total{{engine="0"}} {self.tokens()}\n'
                    )
                case "/claas/status" if self.gpu_uuids is not None:
                    return 200, {
                        "companion_version": "1",
                        "vllm_version": "0.32.0",
                        "supported_vllm_versions": [],
                        "vllm_supported": True,
                        "aliases": self.aliases,
                        "gpu_uuids": self.gpu_uuids,
                        "persisted": True,
                    }
                case "/collective_rpc" if self.export is not None:
                    return 200, self.export
                case "/collective_rpc":
                    return 500, {"error": {"message": "no such method"}}
                case "/v1/models":
                    return 200, {"data": [{"id": "base", "root": "/base"}]}
                case "/v1/completions":
                    logprobs = {"token_logprobs": [-0.5], "top_logprobs": [{"token_id:1": -0.5}]}
                    choice = {"text": "", "token_ids": [1], "logprobs": logprobs}
                    return 200, {"model": self.aliases[0]["target"], "choices": [choice]}
                case "/v1/load_lora_adapter":
                    self.asleep = self.asleep or self.sleeps_over_load
                    return 500, {"error": {"message": "rank is above --max-lora-rank"}}
                case "/sleep" if self.refuses_sleep:
                    return 500, {"error": {"message": "engine error"}}
                case "/sleep":
                    self.asleep = True
                    self.slept_at = time.monotonic()
                    return 200, {}
                case "/wake_up" if self.wake_failures > 0:
                    self.wake_failures -= 1
                    return 500, {"error": {"message": "CUDA out of memory"}}
                case "/wake_up":
                    self.asleep = False
                    self.woken_at = time.monotonic()
                    return 200, {}
                case "/is_sleeping":
                    return 200, {"is_sleeping": self.asleep}
                case "/pause" if self.hangs:
                    self.asleep = True
                    return 0, {}
                case "/pause":
                    self.asleep = True
                    return 200, {"status": "paused"}
                case "/resume":
                    self.asleep = False
                    return 200, {"status": "resumed"}
                case "/is_paused":
                    return 200, {"is_paused": self.asleep}
                case _:
                    return 404, {"detail": "Not Found"}


def _handler(server: SleepingServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer()

        def do_PUT(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def _answer(self) -> None:
            status: int
            body: object
            if server.locked and self.headers.get("X-Claas-Token") != TOKEN:
                server.refused.set()
                status, body = 403, {"error": {"message": "the control token is missing or wrong"}}
            else:
                status, body = server.answer(self.command, urlsplit(self.path).path)
            if status == 0:
                time.sleep(3)
                status = 200
            text = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            # A caller that gave up has closed the connection.
            with suppress(BrokenPipeError):
                self.wfile.write(text)

        def log_message(self, format: str, *args: object) -> None:
            return

    return Handler


@contextmanager
def sleeping_server(*, wake_failures: int = 0, locked: bool = False, hangs: bool = False) -> Iterator[SleepingServer]:
    """A started server, stopped on leaving."""
    server = SleepingServer(wake_failures=wake_failures, locked=locked, hangs=hangs)
    server.start()
    try:
        yield server
    finally:
        server.stop()
