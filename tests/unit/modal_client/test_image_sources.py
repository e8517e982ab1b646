"""The images of both apps have the packages of this project that their containers import, and no others.

Containers of the peer run with the test's own path, so they find what a real one may lack.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import grimp
import pytest

from claas_modal_vllm import image as server
from claas_trainer.engines.modal import app as trainer

ROOT = Path(__file__).resolve().parents[3]


@cache
def imports() -> grimp.ImportGraph:
    packages = sorted(path.parent.name for path in ROOT.glob("*/src/claas_*/__init__.py"))
    return grimp.build_graph(*packages, exclude_type_checking_imports=True, cache_dir=None)


@pytest.mark.parametrize(
    ("app", "sources"),
    [("claas_trainer.engines.modal.app", trainer.SOURCES), ("claas_modal_vllm.app", server.SOURCES)],
)
def test_an_image_has_what_its_containers_import(app: str, sources: tuple[str, ...]) -> None:
    needed = {app, *imports().find_upstream_modules(app)}
    assert set(sources) == {module.partition(".")[0] for module in needed}
