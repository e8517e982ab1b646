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
    assert len(PACKAGES) == 13


FLAT = {"claas_vllm"}
"""A ConfigMap holds the companion, and a ConfigMap has no folders."""


@pytest.mark.parametrize(
    "root", [*PACKAGES, ROOT / "tests", ROOT / "bench", ROOT / "tools"], ids=lambda root: root.name
)
def test_a_folder_holds_a_dozen_modules_at_most(root: Path) -> None:
    counts = {
        folder: len(set(folder.glob("*.py")) - {folder / "__init__.py"}) for folder in [root, *root.rglob("*/")]
    }
    crowded = {str(folder.relative_to(ROOT)): count for folder, count in counts.items() if count > 12}
    assert {folder: count for folder, count in crowded.items() if Path(folder).name not in FLAT} == {}
