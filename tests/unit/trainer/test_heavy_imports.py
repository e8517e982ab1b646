"""What happens while PyTorch is imported."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from claas_trainer.heavy_imports import first_import_of, read_ahead


@pytest.fixture(autouse=True)
def unfrozen() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_nothing_is_collected_during_a_first_import_and_what_it_brought_is_left_alone_afterwards() -> None:
    before = gc.get_freeze_count()
    with first_import_of("claas_trainer.a_module_that_nobody_imported"):
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > before


def test_an_import_that_fails_leaves_collection_on() -> None:
    with pytest.raises(ImportError), first_import_of("claas_trainer.a_module_that_nobody_imported"):
        raise ImportError
    assert gc.isenabled()


def test_a_module_that_is_there_already_changes_nothing() -> None:
    before = gc.get_freeze_count()
    with first_import_of(__name__):
        assert gc.isenabled()
    assert gc.get_freeze_count() == before


def test_reading_ahead_is_no_judge_of_the_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"not a model")
    (tmp_path / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    raised: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "excepthook", raised.append)
        read_ahead(tmp_path)
        read_ahead(tmp_path / "absent")
        for thread in [thread for thread in threading.enumerate() if thread.name == "read-ahead"]:
            thread.join(timeout=10)
    assert raised == []
