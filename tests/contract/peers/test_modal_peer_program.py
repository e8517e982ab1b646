"""The peer as the program that runs in a pod, and its orders over HTTP."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import modal
import modal.exception as errors
import pytest

from tests.contract.peers.modal_site import APPS, until

pytestmark = pytest.mark.contract

TOKEN_ID, TOKEN_SECRET = "ak-of-the-program", "as-of-the-program"


@dataclass(frozen=True)
class Program:
    process: subprocess.Popen[str]
    url: str
    http: httpx.Client
    environment: dict[str, str]

    def containers(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.http.get("/peer/containers").json()
        return found


def start(folder: Path) -> Program:
    path = os.pathsep.join([str(Path(__file__).parents[3]), *sys.path])
    arguments = ["--folder", str(folder), "--port", "0", "--http-port", "0"]
    arguments += ["--token-id", TOKEN_ID, "--token-secret", TOKEN_SECRET]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.peers.modal", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert process.stdout is not None
    words = process.stdout.readline().split()
    environment = {
        "MODAL_SERVER_URL": words[2],
        "MODAL_TOKEN_ID": TOKEN_ID,
        "MODAL_TOKEN_SECRET": TOKEN_SECRET,
        "MODAL_CONFIG_PATH": str(folder / "none"),
        "MODAL_PAYLOAD_FORMAT": "cbor",
    }
    program = Program(process, words[2], httpx.Client(base_url=words[4]), environment)
    program.http.post("/peer/secrets", json={"name": "sample-secret", "values": {"SAMPLE_WORD": "hush"}})
    deployed = subprocess.run(
        [sys.executable, "-m", "modal", "deploy", "-m", "sample_app.app"],
        env={**os.environ, **environment, "PYTHONPATH": str(APPS)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert deployed.returncode == 0, deployed.stderr
    return program


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    folder = tmp_path_factory.mktemp("modal")
    program = start(folder)
    yield program
    assert processes_below(folder)
    program.process.terminate()
    assert program.process.wait(timeout=20) == 0
    assert not processes_below(folder)


@pytest.fixture
def worker(program: Program, monkeypatch: pytest.MonkeyPatch) -> Any:
    return connected(program, monkeypatch)


def connected(program: Program, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, value in program.environment.items():
        monkeypatch.setenv(name, value)
    client = modal.Client.from_credentials(TOKEN_ID, TOKEN_SECRET)
    return modal.Cls.from_name("sample", "Worker", client=client)()


def test_orders_over_http_make_calls_fail_and_tell_of_them(program: Program, worker: Any) -> None:
    refused = {"kind": "refuse", "status": "RESOURCE_EXHAUSTED", "message": "spend limit reached"}
    order = {"at": ["FunctionMap"], "effect": refused, "times": 1}
    assert program.http.post("/peer/failures", json=order).status_code == 204
    with pytest.raises(errors.ResourceExhaustedError, match="spend limit reached"):
        worker.tell.remote({})
    program.http.post("/peer/failures", json={"at": ["FunctionMap"], "effect": {"kind": "end", "fate": "lost"}})
    with pytest.raises(errors.InternalFailure):
        worker.tell.remote({})
    assert program.http.delete("/peer/failures").status_code == 204
    assert worker.tell.remote({})["request"] == {}
    calls = program.http.get("/peer/calls").json()
    assert [(call["method"], call["succeeded"], len(call["runs"])) for call in calls] == [
        ("tell", False, 0),
        ("tell", True, 1),
    ]
    statuses = [rpc["status"] for rpc in program.http.get("/peer/rpcs").json() if rpc["name"] == "FunctionMap"]
    assert statuses == ["RESOURCE_EXHAUSTED", "OK", "OK"]


@pytest.mark.parametrize(
    "order",
    [
        {"at": ["NoSuch"], "effect": {"kind": "cut", "seconds": 1}},
        {"at": ["FunctionMap"], "effect": {"kind": "no such"}},
        {"at": ["FunctionMap"], "effect": {"kind": "refuse", "status": "NO_SUCH"}},
    ],
)
def test_an_order_that_means_nothing_is_refused(program: Program, order: dict[str, Any]) -> None:
    assert program.http.post("/peer/failures", json=order).status_code in (404, 422)


def test_it_tells_what_is_deployed_and_kills_containers(program: Program, worker: Any) -> None:
    assert program.http.get("/peer/apps/sample").json()["classes"]["Worker"]["max_containers"] == 1
    assert program.http.get("/peer/apps/other").status_code == 404
    worker.tell.remote({})
    running = [container["id"] for container in program.containers() if container["alive"]]
    assert len(running) == 1
    program.http.delete(f"/peer/containers/{running[0]}")
    assert worker.tell.remote({})["request"] == {}
    assert program.http.delete("/peer/containers/none").status_code == 404


def test_it_starts_servers(program: Program) -> None:
    order = {"app": "sample", "server": "Site", "containers": 1}
    url = program.http.post("/peer/servers", json=order).json()["url"]
    token = {"Modal-Key": "wk-peer", "Modal-Secret": "ws-peer"}
    until(lambda: httpx.get(url, headers=token).status_code == 200)


def test_nothing_of_it_is_left_when_it_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = start(tmp_path)
    connected(program, monkeypatch).tell.remote({})
    program.http.post("/peer/servers", json={"app": "sample", "server": "Site", "containers": 1})
    until(lambda: all(container["ready"] for container in program.containers()) and len(program.containers()) == 2)
    assert processes_below(tmp_path)
    program.process.kill()
    program.process.wait(timeout=20)
    until(lambda: not processes_below(tmp_path))


def processes_below(folder: Path) -> list[str]:
    """Command lines of processes whose environment or arguments name the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if str(folder).encode() in line:
                found.append(line.decode(errors="replace"))
    return found
