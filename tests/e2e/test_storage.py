"""A volume that is full or read-only: a clear failure, the old version in service and intact."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.stage.scene import Scene

pytestmark = pytest.mark.e2e


@contextmanager
def full(scene: Scene) -> Iterator[None]:
    """The volume has no byte left."""
    filler = scene.serving.volume / "filler"
    status = os.statvfs(scene.serving.volume)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_frsize)
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def read_only(scene: Scene) -> Iterator[None]:
    """Nothing on the volume can be written."""
    path = str(scene.serving.volume)
    subprocess.run(["mount", "-o", "remount,ro", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", path], check=True)


@pytest.mark.parametrize(("state", "reason"), [(full, "StorageFull"), (read_only, "StorageReadOnly")])
def test_a_volume_that_takes_no_version_fails_the_job_and_leaves_the_old_one(
    scene: Scene, state: type, reason: str
) -> None:
    before = scene.served()
    name = f"volume-{reason.lower()}"
    with state(scene):
        scene.apply(name, backoffLimit=0)
        job = scene.finished(name)
    failed = next(condition for condition in job.status.conditions if condition.type == "Failed")
    assert failed.reason == reason
    assert scene.answered_by() == f"{scene.adapter_name}@{before}"
    assert scene.store.numbers()[-1] == before
    scene.store.verify(scene.store.read(before))
