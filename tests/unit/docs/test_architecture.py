"""That docs/architecture.md leads through every module."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGES = sorted(path.parent for path in ROOT.glob("*/src/claas_*/__init__.py"))


def named() -> set[str]:
    _, _, page = (ROOT / "docs" / "architecture.md").read_text("utf-8").partition("## Through the modules")
    return {name.rstrip("/") for name in re.findall(r"`([\w/]+)`", page)}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_the_page_names_each_module_and_folder_of_a_package(package: Path) -> None:
    modules = {path.stem for path in package.rglob("*.py")} - {"__init__"}
    folders = {path.parent.relative_to(package).as_posix() for path in package.rglob("*/__init__.py")} - {"."}
    assert modules | folders <= named()


def test_the_packages_are_there() -> None:
    assert len(PACKAGES) == 7


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_a_folder_holds_a_dozen_modules_at_most(package: Path) -> None:
    if package.name == "claas_vllm":
        pytest.skip("a ConfigMap holds it, and that has no folders")
    counts = {folder: len(list(folder.glob("*.py"))) - 1 for folder in [package, *package.rglob("*/")]}
    assert {folder.name: count for folder, count in counts.items() if count > 12} == {}
