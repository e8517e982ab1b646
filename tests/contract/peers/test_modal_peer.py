"""The unmodified client and CLI of Modal against the peer: deploying, calls, Volumes."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.peers.modal.server import ModalPeer

pytestmark = pytest.mark.contract

APPS = Path(__file__).with_name("modal_apps")


def deploy(peer: ModalPeer, module: str = "sample_app.app") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "modal", "deploy", "-m", module],
        env={**os.environ, **peer.environment(), "PYTHONPATH": str(APPS)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModalPeer]:
    with ModalPeer(tmp_path_factory.mktemp("modal")) as peer:
        peer.secret("sample-secret", {"SAMPLE_WORD": "hush"})
        deployed = deploy(peer)
        assert deployed.returncode == 0, deployed.stderr
        yield peer


@pytest.fixture(scope="module")
def client(peer: ModalPeer) -> Callable[[str], str]:
    """Runs lines of Python in a process of their own, with the client imported, and gives what they print."""

    def run(lines: str) -> str:
        environment = {**os.environ, **peer.environment(), "MODAL_PAYLOAD_FORMAT": "cbor"}
        done = subprocess.run(
            [sys.executable, "-c", f"import io, modal\n{lines}"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


def test_the_deployed_app_is_what_was_asked_for(peer: ModalPeer) -> None:
    app = peer.app("sample")
    worker = app.classes["Worker"]
    assert worker.gpus == ("L40S",)
    assert worker.max_containers == 1
    assert worker.idle_s == 30
    assert worker.snapshot
    assert worker.regions == ("eu-west",)
    assert worker.secrets == ("sample-secret",)
    assert worker.image.environment == {"SAMPLE_COLOUR": "light blue"}
    assert any("numpy==2.0.0" in command for command in worker.image.commands)
    assert "/root/sample_app/app.py" in worker.image.sources
    assert {path: volume.read_only for path, volume in worker.volumes.items()} == {
        "/sample-shelf": False,
        "/sample-library": True,
    }
    assert app.functions["fill"].cpu == 2.0
    assert app.servers["Site"].server is not None


def test_a_call_runs_the_uploaded_sources_after_the_hooks_of_a_snapshot(
    peer: ModalPeer, client: Callable[[str], str]
) -> None:
    told = client("print(modal.Cls.from_name('sample', 'Worker')().tell.remote({'a': b'x'}))")
    container = peer.calls[-1].runs[-1].container
    assert eval(told) == {
        "request": {"a": b"x"},
        "steps": [f"load in {container}", f"wake in {container}.restored"],
        "colour": "light blue",
        "word": "hush",
        "file": f"{peer.folder}/containers/{container}/sources/root/sample_app/app.py",
    }


@pytest.mark.parametrize("size", [100, 10_000, 3_000_000])
def test_a_spawned_call_is_taken_up_by_another_process(
    peer: ModalPeer, client: Callable[[str], str], size: int
) -> None:
    call_id = client(f"print(modal.Cls.from_name('sample', 'Worker')().tell.spawn({{'a': bytes({size})}}).object_id)")
    lines = f"call = modal.FunctionCall.from_id('{call_id}')\nprint([len(call.get(9)['request']['a']) for _ in 'ab'])"
    assert client(lines) == str([size, size])
    assert len(peer.calls[-1].runs) == 1


def test_what_a_container_commits_is_there_for_others(peer: ModalPeer, client: Callable[[str], str]) -> None:
    client("modal.Cls.from_name('sample', 'Worker')().write.remote('d/a.txt', 'hello')")
    assert (peer.volume("sample-shelf") / "d/a.txt").read_text() == "hello"
    volume = "volume = modal.Volume.from_name('sample-shelf')\n"
    assert client(volume + "print(b''.join(volume.read_file('d/a.txt')))") == "b'hello'"
    assert client(volume + "print([entry.path for entry in volume.iterdir('/')])") == "['d', 'd/a.txt']"
    assert client(volume + "volume.remove_file('d', recursive=True)\nprint(volume.listdir('/'))") == "[]"


def test_what_is_uploaded_is_seen_by_a_container_once_it_reloads(
    peer: ModalPeer, client: Callable[[str], str]
) -> None:
    worker = "worker = modal.Cls.from_name('sample', 'Worker')()\n"
    client(worker + "worker.read.remote('nothing', False)")
    client(
        "with modal.Volume.from_name('sample-shelf').batch_upload() as batch:\n"
        "    batch.put_file(io.BytesIO(b'text'), '/up/text')\n"
        "    batch.put_file(io.BytesIO(bytes(range(256)) * 40_000), '/up/large')"
    )
    assert (peer.volume("sample-shelf") / "up/large").read_bytes() == bytes(range(256)) * 40_000
    assert client(worker + "print([worker.read.remote('up/text', again) for again in (False, True)])") == str(
        [None, "text"]
    )
    assert client(worker + "print(worker.read_unmounted.remote('up/text'))") == "b'text'"
    assert "open files" in client(worker + "print(worker.reload_with_open_file.remote('up/text'))")
    assert client(worker + "print(worker.write_to_library.remote())") == "OSError"
