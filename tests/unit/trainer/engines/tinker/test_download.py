"""Signed addresses: fetched, asked for again when they end, never told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from claas_contract.outcome import FailureReason
from claas_trainer.engines.tinker.external import download
from claas_trainer.engines.tinker.external.download import Download, SignedFiles
from claas_trainer.errors import TrainerError

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WHERE = "tinker://run/external_weights/name"
DATA = b"weights" * 1000


@dataclass
class FileStore:
    """Answers as told, then with the file; remembers the paths that were asked for."""

    answers: list[int] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    port: int = 0
    signatures: int = 0

    async def sign(self) -> SignedFiles:
        self.signatures += 1
        url = f"http://127.0.0.1:{self.port}/signature-{self.signatures}"
        return SignedFiles({"a.safetensors": url}, NOW + timedelta(minutes=15))


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileStore]:
    monkeypatch.setattr(download, "_PAUSE_SECONDS", 0.0)
    store = FileStore()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            store.asked.append(self.path)
            status = store.answers.pop(0) if store.answers else 200
            if status == 0:
                self.send_response(200)
                self.send_header("Content-Length", str(len(DATA)))
                self.end_headers()
                self.wfile.write(DATA[:100])
                return
            self.send_response(status)
            self.send_header("Content-Length", str(len(DATA)))
            self.end_headers()
            self.wfile.write(DATA)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        store.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield store
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("answers", "signatures"),
    [
        ([], 1),
        ([503, 500], 1),
        # A connection that breaks in the middle of the file.
        ([0], 1),
        ([403], 2),
        ([404, 410], 3),
    ],
)
async def test_a_file_comes_whole_in_spite_of_faults_that_pass(
    files: FileStore, tmp_path: Path, answers: list[int], signatures: int
) -> None:
    files.answers = answers
    await Download(files.sign, WHERE, lambda: NOW).fetch("a.safetensors", tmp_path / "a", len(DATA))
    assert (tmp_path / "a").read_bytes() == DATA
    assert files.signatures == signatures
    assert files.asked[-1] == f"/signature-{signatures}"


async def test_addresses_are_asked_for_again_before_they_end(files: FileStore, tmp_path: Path) -> None:
    times = iter([NOW + timedelta(minutes=13), NOW + timedelta(minutes=14, seconds=30)])
    fetched = Download(files.sign, WHERE, lambda: next(times))
    for name in ("first", "second", "third"):
        await fetched.fetch("a.safetensors", tmp_path / name, len(DATA))
    assert files.asked == ["/signature-1", "/signature-1", "/signature-2"]


@pytest.mark.parametrize(
    ("answers", "most_bytes", "reason", "said"),
    [
        ([503] * 9, len(DATA), FailureReason.SERVICE_UNREACHABLE, "HTTP 503"),
        ([0] * 9, len(DATA), FailureReason.SERVICE_UNREACHABLE, "RemoteProtocolError"),
        ([], len(DATA) - 1, FailureReason.INVALID_INPUT, "is larger than"),
    ],
)
async def test_a_file_that_does_not_come_or_is_too_large_is_named_but_not_its_address(
    files: FileStore, tmp_path: Path, answers: list[int], most_bytes: int, reason: FailureReason, said: str
) -> None:
    files.answers = answers
    with pytest.raises(TrainerError, match=said) as caught:
        await Download(files.sign, WHERE, lambda: NOW).fetch("a.safetensors", tmp_path / "a", most_bytes)
    assert caught.value.reason is reason
    assert f"a.safetensors of {WHERE}" in caught.value.message
    assert "signature" not in caught.value.message
    assert len(files.asked) <= 4
    error: BaseException | None = caught.value
    while error is not None:
        assert "signature" not in str(error)
        error = error.__cause__


async def test_a_file_that_is_not_listed_any_more_is_named(files: FileStore, tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"b.json of .* does not list it") as caught:
        await Download(files.sign, WHERE, lambda: NOW).fetch("b.json", tmp_path / "b", 10)
    assert caught.value.reason is FailureReason.SERVICE_UNREACHABLE
