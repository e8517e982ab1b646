"""Versions on a real file system: whole or absent, whatever ends the writer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from claas_contract.jobs import JobIdentity
from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.lora import LoraSpec
from claas_trainer.errors import StoreError
from claas_trainer.store.content import Bytes, FileContent
from claas_trainer.store.record import VersionRecord
from claas_trainer.store.tensors import Tensors
from claas_trainer.store.versions import VersionStore

PUBLISHER = Path(__file__).with_name("publisher.py")
ROOT = os.geteuid() == 0


def record(number: int, *, uid: str | None = "job-1", parent: int | None = None) -> VersionRecord:
    return VersionRecord(
        number=number,
        lora_id="user/coder",
        created=datetime(2026, 1, 1, tzinfo=UTC),
        parent=parent,
        jobs=[JobIdentity(namespace="team", name="job", uid=uid, attempt=1)] if uid else [],
        engine="local",
        base_model="base",
        lora=LoraSpec(),
    )


FILES: dict[str, FileContent] = {"adapter_config.json": Bytes(b"{}"), "adapter_model.safetensors": Bytes(b"weights")}


@pytest.fixture
def store(tmp_path: Path) -> VersionStore:
    store = VersionStore(tmp_path / "adapter")
    store.prepare(owner="job-1", attempt=1, needed_bytes=0)
    return store


def test_a_published_version_reads_back_and_matches_its_digest(store: VersionStore) -> None:
    publication = store.publish(record(0), FILES, owner="job-1")
    assert publication.created
    read = store.read(0)
    assert read.record == publication.version.record
    store.verify(read)
    assert store.next_number() == 1
    assert sorted(path.name for path in store.versions.iterdir()) == ["0"]


def test_the_operator_is_told_where_a_service_keeps_the_weights(store: VersionStore) -> None:
    kept = record(0).model_copy(update={"weights": "tinker://run:train:0/sampler_weights/job-1-v0"})
    store.publish(kept, {"tinker.json": Bytes(b"{}")}, owner="job-1")
    assert store.read(0).published("team/coder/versions/0").weights == kept.weights


def test_a_server_of_another_user_can_read_a_version(store: VersionStore) -> None:
    folder = store.publish(record(0), FILES, owner="job-1").version.folder
    assert folder.stat().st_mode & 0o055 == 0o055
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in folder.iterdir())


def test_tensors_are_written_as_safetensors_reads_them_and_equal_ones_give_equal_bytes(store: VersionStore) -> None:
    tensors = {
        "b": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "a": torch.tensor([1.5, -2.5], dtype=torch.bfloat16),
        "step": torch.tensor(7, dtype=torch.int64),
        "t": torch.arange(6.0).reshape(2, 3).t(),
    }
    one = store.publish(record(0), {"x.safetensors": Tensors(tensors, {"format": "pt"})}, owner="job-1").version
    reverse = dict(reversed(tensors.items()))
    two = store.publish(record(1), {"x.safetensors": Tensors(reverse, {"format": "pt"})}, owner="job-1").version
    read = load_file(one.folder / "x.safetensors")
    assert all(
        torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )
    assert one.record.digest == two.record.digest


def test_tensors_of_another_dtype_are_written_as_if_they_had_been_converted_before(store: VersionStore) -> None:
    # Two blocks of 16 MiB and a bit.
    tensors = {f"w{number:02}": torch.randn(1024, 1000) for number in range(17)}
    files = {
        "later": Tensors(tensors, {"format": "pt"}, torch.bfloat16),
        "before": Tensors({name: tensor.bfloat16() for name, tensor in tensors.items()}, {"format": "pt"}),
    }
    version = store.publish(record(0), files, owner="job-1").version
    assert version.record.files["later"] == version.record.files["before"]
    assert files["later"].size_bytes == files["before"].size_bytes
    store.verify(version)


def test_publishing_twice_for_one_job_is_once(store: VersionStore) -> None:
    store.publish(record(0), FILES, owner="job-1")
    again = store.publish(record(0), {"other": Bytes(b"x")}, owner="job-1")
    assert not again.created
    assert sorted(again.version.record.files) == sorted(FILES)
    assert store.published_by({"job-1"}, after=-1) is not None
    assert store.published_by({"job-2"}, after=-1) is None


def test_another_job_that_took_the_number_is_a_conflict_and_stays_untouched(store: VersionStore) -> None:
    first = store.publish(record(0), FILES, owner="job-1").version
    with pytest.raises(StoreError) as caught:
        store.publish(record(0, uid="job-2"), {"other": Bytes(b"x")}, owner="job-2")
    assert caught.value.reason is FailureReason.PUBLISH_CONFLICT
    assert "the next attempt trains from the head" in caught.value.message
    assert store.read(0).record == first.record
    assert sorted(path.name for path in store.versions.iterdir()) == ["0"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"wEights"),
        lambda folder: (folder / "adapter_model.safetensors").unlink(),
        lambda folder: (folder / "version.json").write_text("{"),
        lambda folder: (folder / "version.json").write_text(
            (folder / "version.json").read_text().replace('"number": 0', '"number": 4')
        ),
    ],
    ids=["changed", "missing", "unreadable", "another number"],
)
def test_a_damaged_version_is_found_out(damage: object, store: VersionStore) -> None:
    folder = store.publish(record(0), FILES, owner="job-1").version.folder
    assert callable(damage)
    damage(folder)
    with pytest.raises(StoreError) as caught:
        store.verify(store.read(0))
    assert caught.value.reason is FailureReason.PARENT_CORRUPT
    assert store.head() is None
    assert store.next_number() == 1


def test_a_version_that_is_absent_is_told_apart_from_a_damaged_one(store: VersionStore) -> None:
    with pytest.raises(StoreError) as caught:
        store.read(7)
    assert caught.value.reason is FailureReason.PARENT_NOT_FOUND


def test_what_dead_attempts_left_is_removed_and_a_living_job_s_is_not(store: VersionStore) -> None:
    mine, others, old = (store.versions / f".staging-{owner}-1-0123abcd" for owner in ("job-1", "job-2", "job-3"))
    for folder in (mine, others, old):
        folder.mkdir()
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    store.prepare(owner="job-1", attempt=2, needed_bytes=0)
    assert [path.name for path in store.versions.iterdir()] == [others.name]


@pytest.mark.parametrize("delay_seconds", [0.0, 0.004, 0.012, 0.03, 0.08, 0.2])
def test_a_writer_that_is_killed_at_any_moment_leaves_whole_versions_or_none(
    delay_seconds: float, store: VersionStore
) -> None:
    process = subprocess.Popen(
        [sys.executable, str(PUBLISHER), str(store.root)],
        stdout=subprocess.PIPE,
        env=dict(os.environ) | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    time.sleep(delay_seconds)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=10)
    process.stdout.close()
    for number in store.numbers():
        store.verify(store.read(number))
    next_number = store.next_number()
    store.prepare(owner="writer", attempt=2, needed_bytes=0)
    store.publish(record(next_number), FILES, owner="writer")
    assert not list(store.versions.glob(".staging-*"))


@pytest.fixture
def small_volume(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    if not ROOT:
        pytest.skip("mounting a small tmpfs needs root")
    mount = tmp_path / "small"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)], capture_output=True)
    if done.returncode != 0:
        pytest.skip("this machine does not allow mounts")
    try:
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_a_full_volume_is_said_before_the_pause_when_it_can_be_known(small_volume: Path) -> None:
    with pytest.raises(StoreError) as caught:
        VersionStore(small_volume).prepare(owner="job-1", attempt=1, needed_bytes=4096)
    assert caught.value.reason is FailureReason.STORAGE_FULL


def test_a_volume_that_fills_up_in_mid_publish_keeps_nothing_of_the_version(small_volume: Path) -> None:
    store = VersionStore(small_volume)
    store.versions.mkdir()
    store.publish(record(0), FILES, owner="job-1")
    with pytest.raises(StoreError) as caught:
        store.publish(record(1), {"big": Bytes(b"x" * 2_000_000)}, owner="job-1")
    assert caught.value.reason is FailureReason.STORAGE_FULL
    assert [path.name for path in store.versions.iterdir()] == ["0"]
    store.verify(store.read(0))


def test_a_read_only_volume_is_said_before_the_pause(small_volume: Path) -> None:
    (small_volume / "versions").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(small_volume)], check=True)
    with pytest.raises(StoreError) as caught:
        VersionStore(small_volume).prepare(owner="job-1", attempt=1, needed_bytes=0)
    assert caught.value.reason is FailureReason.STORAGE_READ_ONLY


def test_a_version_of_several_jobs_counts_as_published_for_each_and_is_published_once(store: VersionStore) -> None:
    jobs = [JobIdentity(namespace="team", name=f"job-{n}", uid=f"job-{n}", attempt=1) for n in (1, 2)]
    both = record(0).model_copy(update={"jobs": jobs})
    assert store.publish(both, FILES, owner="job-1").created
    for uid in ("job-1", "job-2"):
        found = store.published_by({uid}, after=-1)
        assert found is not None
        assert not store.publish(record(0, uid=uid), FILES, owner=uid).created
    assert store.published_by({"job-3"}, after=-1) is None
    with pytest.raises(StoreError, match="was published by job-1, job-2 meanwhile"):
        store.publish(record(0, uid="job-3"), FILES, owner="job-3")
