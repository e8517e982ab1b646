"""The zip of the version in service."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claas_vllm import Companion
from claas_vllm.adapter_export import send_adapter, zipped
from claas_vllm.aliases import Alias
from claas_vllm.asgi import Message
from tests.unit.companion.small_server import Reply, SmallServer, ask

NAME = "user123/coder-v1"
TOKEN = {"X-Claas-Token": "control"}
FILES = {"adapter_config.json": b'{"r": 8}', "adapter_model.safetensors": bytes(range(256)) * 9000}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "versions" / "7"
    folder.mkdir(parents=True)
    for name, content in {
        **FILES,
        "optimizer_0.safetensors": b"x",
        "version.json": b"{}",
        "verdict.json": b"{}",
    }.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
async def served(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Companion, SmallServer]:
    (folder.parent / "token").write_text("control")
    monkeypatch.setenv("CLAAS_TOKEN_FILE", str(folder.parent / "token"))
    monkeypatch.delenv("CLAAS_LOCK", raising=False)
    server = SmallServer(adapters={f"{NAME}@7": str(folder)})
    app = Companion(server)
    body = json.dumps({"target": f"{NAME}@7", "path": str(folder), "version": 7}).encode()
    assert (await ask(app, "PUT", f"/claas/aliases/{NAME}", body, headers=TOKEN, application=server)).status == 200
    return app, server


async def export(served: tuple[Companion, SmallServer], name: str, headers: dict[str, str] = TOKEN) -> Reply:
    app, server = served
    return await ask(app, "GET", f"/claas/adapters/{name}/export", headers=headers, application=server)


async def test_the_zip_has_the_adapter_and_nothing_of_its_training(served: tuple[Companion, SmallServer]) -> None:
    reply = await export(served, NAME)
    assert reply.status == 200
    assert reply.headers == {
        "content-type": "application/zip",
        "content-disposition": 'attachment; filename="user123-coder-v1-7.zip"',
        "x-claas-version": f"{NAME}@7",
    }
    with zipfile.ZipFile(io.BytesIO(reply.body)) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == FILES
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


@pytest.mark.parametrize("external", [False, True])
async def test_the_zip_says_where_a_service_keeps_the_weights(
    served: tuple[Companion, SmallServer], folder: Path, external: bool
) -> None:
    files = {"tinker.json": b'{"sampler_path": "tinker://run/sampler_weights/7"}', **(FILES if external else {})}
    (folder / "tinker.json").write_bytes(files["tinker.json"])
    if not external:
        for name in FILES:
            (folder / name).unlink()
    reply = await export(served, NAME)
    assert reply.status == 200
    with zipfile.ZipFile(io.BytesIO(reply.body)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == files


async def test_only_a_served_name_is_exported_and_only_with_the_token(
    served: tuple[Companion, SmallServer], folder: Path
) -> None:
    assert (await export(served, NAME, {})).status == 403
    for unknown in ("another", f"{NAME}@7", "", "..", NAME + "/.."):
        assert (await export(served, unknown)).status in (403, 404)
    shutil.rmtree(folder)
    gone = await export(served, NAME)
    assert gone.status == 404
    assert "No such file" in json.dumps(gone.json())


async def test_a_version_that_is_deleted_meanwhile_is_sent_to_its_end(folder: Path) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)
        shutil.rmtree(folder, ignore_errors=True)

    await send_adapter(Alias(NAME, f"{NAME}@7", str(folder), 7), _staying, send)
    with zipfile.ZipFile(io.BytesIO(b"".join(message.get("body", b"") for message in sent))) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == FILES


async def test_nothing_more_is_read_for_a_client_that_hung_up(folder: Path) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def hung_up() -> Message:
        return {"type": "http.disconnect"}

    await send_adapter(Alias(NAME, f"{NAME}@7", str(folder), 7), hung_up, send)
    assert sum(len(message.get("body", b"")) for message in sent) < len(FILES["adapter_model.safetensors"])


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 3 << 20), min_size=1, max_size=3))
def test_a_zip_comes_in_small_pieces_whatever_the_files(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("files")
    contents = {str(number): bytes([number]) * size for number, size in enumerate(sizes)}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    pieces = list(zipped([(folder / name).open("rb") for name in contents]))
    assert max(map(len, pieces)) < (1 << 20) + 4096
    with zipfile.ZipFile(io.BytesIO(b"".join(pieces))) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == contents


async def _staying() -> Message:
    await asyncio.Event().wait()
    raise AssertionError
