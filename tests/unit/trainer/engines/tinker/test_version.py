"""What a step of the Tinker engine starts from, and what the next version says of itself."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from claas_contract.engine import StateRef
from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.lora import LoraSpec
from claas_tinker_client.version_file import VERSION_FILE, TinkerVersion
from claas_trainer.engines.tinker.version import (
    KEPT_LINEAGE,
    first_version,
    next_version,
    read_parent,
    state_ref,
    version_file,
)
from claas_trainer.errors import TrainerError
from claas_trainer.store.content import Bytes, FileContent
from claas_trainer.store.record import VersionRecord
from claas_trainer.store.versions import StoredVersion, VersionStore

BASE = "Qwen/Qwen3-8B"
FIRST = first_version(BASE, rank=8, seed=7)
SECOND = next_version(FIRST, "run-1", "tinker://run-1/weights/a", "tinker://run-1/sampler_weights/a")


def stored(
    root: Path, files: dict[str, FileContent], *, engine: str = "tinker", parent: int | None = None
) -> StoredVersion:
    store = VersionStore(root)
    number = store.next_number()
    store.prepare(owner="job", attempt=1, needed_bytes=0)
    record = VersionRecord(
        number=number,
        lora_id="user/coder",
        created=datetime(2026, 1, 1, tzinfo=UTC),
        parent=parent,
        engine=engine,
        base_model="base",
        lora=LoraSpec(),
    )
    return store.publish(record, files, owner="job").version


@pytest.mark.parametrize(("version", "parent"), [(FIRST, None), (SECOND, 0)])
def test_a_version_reads_back_as_it_was_written(tmp_path: Path, version: TinkerVersion, parent: int | None) -> None:
    assert read_parent(stored(tmp_path, dict(version_file(version)), parent=parent), BASE) == version


def test_the_next_version_descends_from_the_one_before_and_says_where_its_state_is() -> None:
    third = next_version(SECOND, "run-2", "tinker://run-2/weights/b", "tinker://run-2/sampler_weights/b")
    assert (FIRST.step, SECOND.step, third.step) == (0, 1, 2)
    assert (FIRST.lineage, SECOND.lineage, third.lineage) == ((), (), ("tinker://run-1/weights/a",))
    assert (third.base_model, third.rank, third.seed) == (BASE, 8, 7)
    assert state_ref(FIRST) is None
    assert state_ref(third) == StateRef(engine="tinker", uri="tinker://run-2/weights/b")


def test_the_lineage_does_not_grow_without_end() -> None:
    version = FIRST
    for step in range(KEPT_LINEAGE + 9):
        version = next_version(version, f"run-{step}", f"tinker://{step}", f"tinker://{step}/sampler")
    assert version.step == KEPT_LINEAGE + 9
    assert (len(version.lineage), version.lineage[-1]) == (KEPT_LINEAGE, f"tinker://{KEPT_LINEAGE + 7}")


HALF = SECOND.model_copy(update={"sampler_path": None})


@pytest.mark.parametrize(
    ("files", "engine", "base_model", "reason", "said"),
    [
        ({"adapter_config.json": Bytes(b"{}")}, "local", BASE, FailureReason.INVALID_INPUT, "made by engine local"),
        (dict(version_file(SECOND)), "tinker", "other", FailureReason.ADAPTER_MISMATCH, f"is other and was {BASE}"),
        ({"other": Bytes(b"")}, "tinker", BASE, FailureReason.PARENT_CORRUPT, "is missing"),
        ({VERSION_FILE: Bytes(b"{]")}, "tinker", BASE, FailureReason.PARENT_CORRUPT, "can't be read"),
        ({VERSION_FILE: Bytes(b'{"rank": 8}')}, "tinker", BASE, FailureReason.PARENT_CORRUPT, "can't be read"),
        (dict(version_file(HALF)), "tinker", BASE, FailureReason.PARENT_CORRUPT, "one of two checkpoints"),
        (dict(version_file(FIRST)), "tinker", BASE, FailureReason.PARENT_CORRUPT, "names no checkpoint"),
    ],
)
def test_a_parent_that_a_step_can_not_start_from_is_refused_with_the_cause(
    tmp_path: Path, files: dict[str, FileContent], engine: str, base_model: str, reason: FailureReason, said: str
) -> None:
    parent = stored(tmp_path, files, engine=engine, parent=0)
    with pytest.raises(TrainerError) as caught:
        read_parent(parent, base_model)
    assert caught.value.reason is reason
    assert said in caught.value.message


def test_what_a_newer_release_adds_is_ignored(tmp_path: Path) -> None:
    newer = json.loads(SECOND.model_dump_json()) | {"region": "north"}
    parent = stored(tmp_path, {VERSION_FILE: Bytes(json.dumps(newer).encode())}, parent=0)
    assert read_parent(parent, BASE) == SECOND
