"""The unmodified client and CLI of Modal against the peer: deploying, calls, Volumes."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import modal
import pytest

from tests.contract.peers.modal_site import APPS, CALL_S, connect, deploy_sample, until
from tests.peers.modal.server import ModalPeer

pytestmark = pytest.mark.contract


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModalPeer]:
    with ModalPeer(tmp_path_factory.mktemp("modal")) as peer:
        deploy_sample(peer)
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
    assert worker.image.environment == {"SAMPLE_COLOUR": "light blue", "SAMPLE_MOUNTS": "/"}
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


def test_a_function_and_options_of_the_callers_own_have_their_own_containers(
    peer: ModalPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect(peer, monkeypatch)
    assert modal.Function.from_name("sample", "fill", client=client).remote("a", "text") == "main"
    assert (peer.volume("sample-library") / "a").read_text() == "text"
    other = modal.Cls.from_name("sample", "Worker", client=client).with_options(gpu="H100", timeout=40)
    worker: Any = other()
    container = worker.tell.remote({})["file"].split("/containers/")[1].split("/")[0]
    definition = peer.service.pool.find(container).function.definition
    assert (definition.resources.gpu_config.gpu_type, definition.timeout_secs) == ("H100", 40)
    assert worker.tell.remote({})["file"].split("/containers/")[1].split("/")[0] == container


def test_a_call_that_takes_longer_than_its_timeout_is_ended(peer: ModalPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    worker: Any = modal.Cls.from_name("sample", "Worker", client=connect(peer, monkeypatch)).with_options(timeout=1)()
    with pytest.raises(modal.exception.FunctionTimeoutError, match="hit its timeout of 1s"):
        worker.sleep.remote(20)


@pytest.fixture(params=[True, False], ids=["mounts", "links"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ModalPeer]:
    """A peer with short idle windows, large blobs in parts, and Volumes mounted or linked."""
    mounts = tmp_path / "mounts"
    mounts.mkdir()
    with ModalPeer(tmp_path / "peer", mounts=request.param, idle_s=0.5, multipart_bytes=1 << 20) as peer:
        deploy_sample(peer, {"SAMPLE_MOUNTS": str(mounts)})
        yield peer


def test_idle_containers_end_and_commit_what_they_wrote(small: ModalPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    client = connect(small, monkeypatch)
    worker: Any = modal.Cls.from_name("sample", "Worker", client=client)()
    assert len(worker.tell.remote({"a": bytes(2_500_000)})["request"]["a"]) == 2_500_000
    assert not (small.volume("sample-shelf") / "left").exists()
    until(lambda: not small.containers())
    assert small.containers(alive=False)[-1].exit_code == 0
    assert (small.volume("sample-shelf") / "left").read_text() == "yes"
    calls = [worker.sleep.spawn(0.2), modal.Function.from_name("sample", "fill", client=client).spawn("a", "b")]
    assert [call.get(timeout=CALL_S) for call in calls] == ["slept", "main"]
    assert worker.write_to_library.remote() in ("OSError", "PermissionError", "")


def test_the_clis_commands_work(peer: ModalPeer, tmp_path: Path) -> None:
    def cli(*arguments: str) -> str:
        environment = {**os.environ, **peer.environment(), "PYTHONPATH": str(APPS)}
        command = [sys.executable, "-m", "modal", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_text("text")
    cli("secret", "create", "other-secret", "WORD=hush")
    cli("volume", "create", "other-volume", "--version", "2")
    cli("volume", "put", "--force", "other-volume", str(tmp_path / "folder"), "/a/b")
    assert (peer.volume("other-volume") / "a/b/file").read_text() == "text"
    assert cli("volume", "ls", "other-volume", "a/b").strip() == "a/b/file"
    assert cli("volume", "get", "other-volume", "a/b/file", "-").startswith("text")
    cli("volume", "rm", "-r", "other-volume", "a")
    assert not list(peer.volume("other-volume").iterdir())
    cli("run", "-m", "sample_app.app::fill", "--name", "run", "--text", "by run")
    assert (peer.volume("sample-library") / "run").read_text() == "by run"
    cli("app", "stop", "--yes", "sample")
    with pytest.raises(LookupError):
        peer.app("sample")
