"""Which versions may be served from the start: those that the service made and serving did not reject."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from claas_crds.v1alpha1.lora import LoraSpec
from claas_crds.v1alpha1.version import VersionVerdict
from claas_inference_proxy.adapters.volume import servable_versions
from claas_tinker_client.version_file import VERSION_FILE, TinkerVersion
from claas_trainer.store.record import RECORD_FILE, VersionRecord
from claas_trainer.store.verdict import write_verdict


def make(adapter: Path, number: int, *, says: int | None = None, here: bool = True) -> Path:
    """A version as the trainer publishes it."""
    folder = adapter / "versions" / str(number)
    folder.mkdir(parents=True)
    record = VersionRecord(
        number=number if says is None else says, lora_id="me/tone", created=datetime.now(UTC), engine="tinker",
        base_model="base", lora=LoraSpec(),
    )  # fmt: skip
    (folder / RECORD_FILE).write_text(record.model_dump_json())
    if here:
        (folder / VERSION_FILE).write_text(TinkerVersion(base_model="base", rank=8, seed=1).model_dump_json())
    return folder


def test_the_newest_by_number_comes_first(tmp_path: Path) -> None:
    for number in (0, 9, 10):
        make(tmp_path, number)
    assert servable_versions(tmp_path) == [10, 9, 0]


@pytest.mark.parametrize("verdict", [VersionVerdict.SERVED, VersionVerdict.UNTRIED])
def test_one_that_was_not_rejected_may_be(tmp_path: Path, verdict: VersionVerdict) -> None:
    make(tmp_path, 0)
    write_verdict(make(tmp_path, 1), verdict)
    assert servable_versions(tmp_path)[0] == 1


def test_rejected_unfinished_foreign_and_broken_ones_are_passed_over(tmp_path: Path) -> None:
    make(tmp_path, 3)
    write_verdict(make(tmp_path, 4), VersionVerdict.REJECTED, "it did not answer")
    (tmp_path / "versions" / ".5.staging").mkdir()
    (tmp_path / "versions" / "06").mkdir()
    (tmp_path / "versions" / "7").mkdir()
    make(tmp_path, 8, here=False)
    make(tmp_path, 9, says=2)
    (make(tmp_path, 11) / RECORD_FILE).write_text("{")
    assert servable_versions(tmp_path) == [3]


def test_an_unreadable_verdict_is_none(tmp_path: Path) -> None:
    (make(tmp_path, 1) / "verdict.json").write_text("{")
    assert servable_versions(tmp_path)[0] == 1


def test_there_may_be_none(tmp_path: Path) -> None:
    assert servable_versions(tmp_path) == []
    (tmp_path / "versions").mkdir()
    assert servable_versions(tmp_path) == []
