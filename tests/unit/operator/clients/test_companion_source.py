"""The companion's files as the operator hands them to vLLM pods."""

import subprocess
import sys
from pathlib import Path

import pytest

from claas_operator.clients.companion_source import CompanionSource

SOURCE = CompanionSource.installed()


def test_its_files_alone_make_the_package_that_vllm_is_told_to_import(tmp_path: Path) -> None:
    package = tmp_path / "claas_vllm"
    package.mkdir()
    for name, text in SOURCE.files.items():
        (package / name).write_text(text)
    told = "from claas_vllm import Companion, WeightExport; print(Companion.__module__, WeightExport.__module__)"
    alone = {"PYTHONPATH": str(tmp_path)}
    found = subprocess.run([sys.executable, "-S", "-c", told], env=alone, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["claas_vllm.companion", "claas_vllm.weight_export"]


@pytest.mark.parametrize(
    ("change", "current"),
    [
        ({}, True),
        ({"a-key-of-somebody-else": "x"}, True),
        ({"companion.py": "# an older one"}, False),
    ],
)
def test_a_config_map_is_current_when_it_carries_every_file(change: dict[str, str], current: bool) -> None:
    assert SOURCE.is_current({"data": {**SOURCE.files, **change}}) is current


def test_a_config_map_without_one_of_the_files_or_without_any_is_not_current() -> None:
    assert not SOURCE.is_current({"data": {name: text for name, text in SOURCE.files.items() if name != "lock.py"}})
    assert not SOURCE.is_current({"data": {}})
    assert not SOURCE.is_current(None)
