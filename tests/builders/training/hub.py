"""A hub with one model, for its real client."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self

COMMIT = "c" * 40


class ModelHub:
    """Serves a folder as a repository at one commit. As a context manager it listens."""

    def __init__(self, folder: Path, repository: str, *, commit: str = COMMIT, token: str | None = None) -> None:
        """`token`: what clients must show, if anything."""
        self.folder = folder
        self.repository = repository
        self.commit = commit
        self.token = token
        self.damaged: set[str] = set()
        """Names of files that arrive with other bytes than the hub tells of."""
        self.downloads: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self, body=True)

            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def log_message(self, format: str, *args: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        path = request.path.partition("?")[0]
        headers: dict[str, str] = {}
        if self.token is not None and request.headers.get("Authorization") != f"Bearer {self.token}":
            status, content = 401, b"{}"
        elif path == f"/api/models/{self.repository}/revision/main":
            status, content = 200, json.dumps(self._info()).encode()
        elif path == f"/api/models/{self.repository}/tree/{self.commit}":
            status, content = 200, json.dumps(self._tree()).encode()
        elif path.startswith(beginning := f"/{self.repository}/resolve/{self.commit}/"):
            name = path.removeprefix(beginning)
            status, content = 200, (self.folder / name).read_bytes()
            headers = {"X-Repo-Commit": self.commit, "ETag": f'"{_digest(content)}"'}
            if body:
                self.downloads.append(name)
                content = bytes(reversed(content)) if name in self.damaged else content
        else:
            status, content = 404, b"{}"
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            request.send_header(name, value)
        request.end_headers()
        if body:
            request.wfile.write(content)

    def _info(self) -> dict[str, object]:
        files = [
            {"rfilename": path.name, "size": path.stat().st_size, "blobId": "b", **self._lfs(path)}
            for path in sorted(self.folder.iterdir())
        ]
        return {"id": self.repository, "sha": self.commit, "siblings": files}

    def _tree(self) -> list[dict[str, object]]:
        return [
            {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": "b", **self._lfs(path, "oid")}
            for path in sorted(self.folder.iterdir())
        ]

    def _lfs(self, path: Path, key: str = "sha256") -> dict[str, object]:
        if path.suffix != ".safetensors":
            return {}
        size = path.stat().st_size
        return {"lfs": {key: _digest(path.read_bytes()), "size": size, "pointerSize": 100}}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
