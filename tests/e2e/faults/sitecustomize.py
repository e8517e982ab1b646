"""Mounted into a trainer's pod by tests: holds the trainer at a chosen point of its step, once.

The trainer's image is the real one and knows nothing of this: Python imports `sitecustomize` from PYTHONPATH at
start. FAULT_POINT names the point. When it is reached, the file `<FAULT_FOLDER>/<FAULT_POINT>` is made, and the
trainer stands still until there is a file `<FAULT_POINT>.go` beside it. Another attempt finds the first file and
passes.
"""

import importlib.abc
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

POINT = os.environ.get("FAULT_POINT", "")
FOLDER = Path(os.environ.get("FAULT_FOLDER", "/nowhere"))


def hold() -> None:
    """Stand still, once for all attempts."""
    try:
        (FOLDER / POINT).touch(exist_ok=False)
    except FileExistsError:
        return
    while not (FOLDER / f"{POINT}.go").exists():
        time.sleep(0.05)


def holding_before(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, after having stood still."""

    def held(*arguments: Any, **named: Any) -> Any:
        hold()
        return function(*arguments, **named)

    return held


class PatchAtImport(importlib.abc.MetaPathFinder):
    """Replaces a method of a class as soon as its module has been imported."""

    def __init__(self, module: str, owner: str, method: str) -> None:
        self._module, self._owner, self._method = module, owner, method

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_patch(module: ModuleType) -> None:
            execute(module)
            owner = getattr(module, self._owner)
            setattr(owner, self._method, holding_before(getattr(owner, self._method)))

        spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign]
        return spec


def _rename(source: Any, target: Any, _really: Callable[..., None] = os.rename) -> None:
    is_version = Path(target).name.isdigit()
    if POINT == "publishing" and is_version:
        hold()
    _really(source, target)
    if POINT == "published" and is_version:
        hold()


if POINT == "prepared":
    for module, owner in (("sleep", "SleepHandover"), ("share", "ShareHandover")):
        sys.meta_path.insert(0, PatchAtImport(f"claas_trainer.serving.handover.{module}", owner, "paused"))
elif POINT == "stepping":
    sys.meta_path.insert(0, PatchAtImport("claas_trainer.engines.local.engine", "LocalEngine", "acquire"))
elif POINT in ("publishing", "published"):
    setattr(os, "rename", _rename)  # noqa: B010  (a plain assignment would have to repeat its whole signature)
