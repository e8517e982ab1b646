"""Files and folders of a Volume, by the real client against the peer."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from claas_bounded.waits import Deadline
from claas_modal_client.addresses import VolumeAddress
from claas_modal_client.connection import ModalConnection
from claas_modal_client.errors import ModalFault, ModalServiceError
from claas_modal_client.folders import fetch, manifest, present, store
from claas_modal_client.manifest import MANIFEST_FILE
from claas_modal_client.volume import ModalVolume
from tests.peers.modal.failures import OUT_OF_ORDER
from tests.peers.modal.server import ModalPeer

pytestmark = pytest.mark.contract
BLOCK = 8 << 20


def soon() -> Deadline:
    return Deadline.after(30)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A version's files: one of more than a block, which ends with zeros, one that is empty."""
    contents = {
        "adapter_config.json": b"{}",
        "adapter_model.safetensors": os.urandom(BLOCK + 1000) + bytes(5000),
        "optimizer/adam.safetensors": os.urandom(1000),
        "empty": b"",
    }
    found = {}
    for number, (name, content) in enumerate(contents.items()):
        found[name] = tmp_path / f"source-{number}"
        found[name].write_bytes(content)
    return found


@pytest.fixture
async def address(connection: ModalConnection, files: dict[str, Path]) -> VolumeAddress:
    return await store(connection, "claas-echo", f"adapters/uid/1-{os.urandom(8).hex()}", files, soon())


async def test_files_are_written_listed_read_and_removed(volume: ModalVolume) -> None:
    before = time.time()
    await volume.upload({"a/one.txt": b"one", "a/b/two.txt": b"two two"}, soon())
    listed = {entry.path: entry for entry in await volume.list("a", soon())}
    assert set(listed) == {"a/one.txt", "a/b"}
    assert (listed["a/one.txt"].size, listed["a/one.txt"].is_folder, listed["a/b"].is_folder) == (3, False, True)
    assert listed["a/one.txt"].name == "one.txt"
    assert before - 5 < listed["a/one.txt"].modified < time.time() + 5
    deep = {entry.path for entry in await volume.list("a", soon(), recursive=True)}
    assert "a/b/two.txt" in deep
    assert await volume.read("a/b/two.txt", soon()) == b"two two"
    assert await volume.remove("a", soon())
    assert not await volume.remove("a", soon())
    with pytest.raises(ModalServiceError) as caught:
        await volume.list("a", soon())
    assert caught.value.kind is ModalFault.FILE_MISSING


async def test_a_file_is_replaced_only_on_purpose(volume: ModalVolume) -> None:
    await volume.upload({"kept": b"first"}, soon())
    with pytest.raises(ModalServiceError, match="has another file there") as caught:
        await volume.upload({"kept": b"second"}, soon())
    assert caught.value.kind is ModalFault.REQUEST_REFUSED
    assert await volume.read("kept", soon()) == b"first"
    await volume.upload({"kept": b"second"}, soon(), overwrite=True)
    assert await volume.read("kept", soon()) == b"second"


async def test_a_file_that_is_too_large_is_not_read(volume: ModalVolume, tmp_path: Path) -> None:
    await volume.upload({"large": bytes(2 * BLOCK)}, soon(), overwrite=True)
    with pytest.raises(ModalServiceError, match="more than the 1048576 bytes") as caught:
        await volume.read("large", soon())
    assert caught.value.kind is ModalFault.REQUEST_REFUSED
    digest = await volume.download("large", tmp_path / "large", soon(), 2 * BLOCK)
    assert digest == hashlib.sha256(bytes(2 * BLOCK)).hexdigest()
    assert (tmp_path / "large").stat().st_size == 2 * BLOCK


async def test_a_folder_arrives_as_it_was_stored(
    address: VolumeAddress, connection: ModalConnection, files: dict[str, Path], tmp_path: Path
) -> None:
    assert VolumeAddress.parse(str(address)) == address
    assert await present(connection, address, soon())
    fetched = await fetch(connection, address, tmp_path / "version", soon())
    assert set(fetched.files) == set(files)
    assert fetched == await manifest(connection, address, soon())
    for name, source in files.items():
        assert (tmp_path / "version" / name).read_bytes() == source.read_bytes()
    some = await fetch(connection, address, tmp_path / "some", soon(), ["adapter_config.json"])
    assert some == fetched
    assert [path.name for path in (tmp_path / "some").iterdir()] == ["adapter_config.json"]


async def test_storing_the_same_files_again_writes_nothing(
    address: VolumeAddress, connection: ModalConnection, files: dict[str, Path], peer: ModalPeer
) -> None:
    before = len([rpc for rpc in peer.rpcs if rpc.name == "VolumePutFiles2"])
    assert await store(connection, "claas-echo", address.folder, files, soon()) == address
    assert len([rpc for rpc in peer.rpcs if rpc.name == "VolumePutFiles2"]) == before


async def test_an_upload_that_was_cut_off_leaves_no_whole_folder_and_is_completed(
    connection: ModalConnection, peer: ModalPeer, files: dict[str, Path], volume: ModalVolume
) -> None:
    # The files take two requests (what is missing; all is there), then the manifest is refused, with retries.
    peer.fail("VolumePutFiles2", OUT_OF_ORDER, first=3)
    with pytest.raises(ModalServiceError) as caught:
        await store(connection, "claas-echo", "adapters/uid/cut-off", files, soon())
    assert caught.value.kind is ModalFault.UNREACHABLE
    peer.clear_failures()
    names = {entry.name for entry in await volume.list("adapters/uid/cut-off", soon())}
    assert "adapter_model.safetensors" in names
    assert MANIFEST_FILE not in names
    stored = await store(connection, "claas-echo", "adapters/uid/cut-off", files, soon())
    assert await present(connection, stored, soon())


@pytest.mark.parametrize("damage", ["changed", "cut", "removed", "manifest changed", "manifest removed"])
async def test_a_damaged_folder_is_missing_and_leaves_nothing_behind(
    damage: str, address: VolumeAddress, connection: ModalConnection, peer: ModalPeer, tmp_path: Path
) -> None:
    folder = peer.volume("claas-echo") / address.folder
    file = folder / (MANIFEST_FILE if damage.startswith("manifest") else "adapter_model.safetensors")
    content = file.read_bytes()
    if damage.endswith("removed"):
        file.unlink()
    elif damage == "cut":
        file.write_bytes(content[:-1])
    else:
        file.write_bytes(content.replace(content[100:101], b"?", 1))
    target = tmp_path / "targets" / "version"
    with pytest.raises(ModalServiceError) as caught:
        await fetch(connection, address, target, soon())
    assert caught.value.kind is ModalFault.FILE_MISSING
    assert not target.exists()
    assert not target.parent.exists() or not list(target.parent.iterdir())
    assert await present(connection, address, soon()) is not damage.startswith("manifest")


async def test_another_folder_s_manifest_is_not_taken(
    address: VolumeAddress, connection: ModalConnection, tmp_path: Path
) -> None:
    other = VolumeAddress(address.volume, address.folder, hashlib.sha256(b"other").hexdigest())
    assert not await present(connection, other, soon())
    with pytest.raises(ModalServiceError, match="with the digest that was promised"):
        await fetch(connection, other, tmp_path / "version", soon())


async def test_a_file_that_the_folder_lacks_is_missing(
    address: VolumeAddress, connection: ModalConnection, tmp_path: Path
) -> None:
    with pytest.raises(ModalServiceError, match="has no train") as caught:
        await fetch(connection, address, tmp_path / "version", soon(), ["train"])
    assert caught.value.kind is ModalFault.FILE_MISSING
