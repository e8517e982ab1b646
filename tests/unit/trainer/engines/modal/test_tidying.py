"""Which folders the Volume keeps."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from claas_contract.engine import StateRef
from claas_crds.v1alpha1.lora import LoraSpec
from claas_modal_client.volume import VolumeEntry
from claas_trainer.engines.modal.folders import uploaded_name
from claas_trainer.engines.modal.tidying import superseded, to_remove, written_last
from claas_trainer.store.record import ADAPTER_WEIGHTS_FILE, VersionRecord

ROOT = "adapters/uid"
START = datetime(2026, 5, 4, tzinfo=UTC)
DAY = timedelta(days=1)
TTL = timedelta(days=7)
FILES = {ADAPTER_WEIGHTS_FILE: "a", "optimizer_master.safetensors": "b"}


def record(number: int, parent: int | None, root: str = ROOT) -> VersionRecord:
    """Version `number`, published on that day."""
    address = f"modal://claas-adapters/{root}/{number}-made#{'0' * 64}"
    return VersionRecord(
        number=number,
        lora_id="team/tone",
        created=START + number * DAY,
        parent=parent,
        engine="modal",
        base_model="base",
        lora=LoraSpec(),
        state=StateRef(engine="modal", uri=address),
        weights=address,
        files=FILES,
    )


CHAIN = [record(number, number - 1 if number else None) for number in range(5)]


def removed(folders: list[str], records: list[VersionRecord], day: float, pointed: tuple[str, ...] = ()) -> list[str]:
    """Of folders written at the start, on that day."""
    written = dict.fromkeys(folders, START)
    return to_remove(written, records, ROOT, pointed, START + day * DAY, TTL)


def test_a_version_is_superseded_when_another_one_than_its_child_becomes_the_head() -> None:
    ends = {number: START + (number + 2) * DAY for number in range(3)}
    assert superseded(CHAIN) == {**ends, 3: None, 4: None}
    # After a step from version 1, versions 3 and 4 have no part in it.
    back = [*CHAIN, record(5, 1)]
    assert superseded(back) == {**ends, 1: None, 3: START + 5 * DAY, 4: START + 5 * DAY, 5: None}


@pytest.mark.parametrize(
    ("folder", "day", "gone"),
    [
        (f"{ROOT}/4-made", 1000, False),
        (f"{ROOT}/3-made", 1000, False),
        (f"{ROOT}/2-made", 10.9, False),
        (f"{ROOT}/2-made", 11, True),
        (f"{ROOT}/{uploaded_name(4, FILES)}", 1000, False),
        (f"{ROOT}/{uploaded_name(3, FILES)}-0f0f", 1000, False),
        (f"{ROOT}/{uploaded_name(2, {ADAPTER_WEIGHTS_FILE: 'a'})}", 10.9, False),
        (f"{ROOT}/{uploaded_name(2, {ADAPTER_WEIGHTS_FILE: 'a'})}", 11, True),
        (f"{ROOT}/4-of-a-rerun", 0.04, False),
        (f"{ROOT}/4-of-a-rerun", 0.05, True),
        ("adapters/another/4-of-a-rerun", 1000, False),
    ],
)
def test_a_folder_stays_while_a_step_may_need_it(folder: str, day: float, gone: bool) -> None:
    assert removed([folder], CHAIN, day) == ([folder] if gone else [])


def test_a_folder_that_is_served_stays() -> None:
    folders = [f"{ROOT}/0-made", f"{ROOT}/1-made"]
    assert removed(folders, CHAIN, 1000, pointed=(f"{ROOT}/0-made",)) == [f"{ROOT}/1-made"]


def test_versions_of_an_adapter_that_was_made_again_are_superseded_where_they_lie() -> None:
    old = [record(number, number - 1 if number else None, "adapters/old") for number in range(3)]
    folders = [f"adapters/old/{number}-made" for number in range(3)]
    assert removed(folders, [*old, CHAIN[3]], 1000) == folders[:2]


def test_a_folder_is_as_old_as_its_newest_file_and_one_of_unknown_age_is_not_told() -> None:
    entries = [
        VolumeEntry(f"{ROOT}/1-a", True, 0, 5.0),
        VolumeEntry(f"{ROOT}/1-a/manifest.json", False, 9, 9.0),
        VolumeEntry(f"{ROOT}/2-b", True, 0, 0.0),
        VolumeEntry(f"{ROOT}/a-file", False, 1, 3.0),
    ]
    assert written_last(entries, ROOT) == {f"{ROOT}/1-a": datetime.fromtimestamp(9, UTC)}
