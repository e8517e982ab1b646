"""The chart as the real Helm renders it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import cast

import yaml
from pydantic import JsonValue

from tests.cluster.paths import REPOSITORY_ROOT
from tests.cluster.services.binaries import Binary, ensure

Object = dict[str, JsonValue]
CHART = REPOSITORY_ROOT / "helm" / "claas-operator"


def helm_binary() -> Path:
    """The program."""
    return ensure([Binary.HELM])[Binary.HELM]


def call(helm: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Helm."""
    return subprocess.run([helm, *arguments], capture_output=True, text=True, timeout=60, check=False)


def template(helm: Path, *settings: str) -> list[Object]:
    """The objects that the chart renders with these `--set` arguments."""
    options = [part for setting in settings for part in ("--set", setting)]
    result = call(helm, "template", "claas", str(CHART), "--namespace", "claas-system", *options)
    assert result.returncode == 0, result.stderr
    return [cast(Object, each) for each in yaml.safe_load_all(result.stdout) if each]


def at(data: JsonValue, *path: str | int) -> JsonValue:
    """The value below `data` at that path."""
    for part in path:
        data = cast(list[JsonValue], data)[part] if isinstance(part, int) else cast(Object, data)[part]
    return data


def of_kind(objects: list[Object], kind: str, name: str | None = None) -> list[Object]:
    """Those of a kind."""
    return [each for each in objects if each["kind"] == kind and name in (None, at(each, "metadata", "name"))]


def one(objects: list[Object], kind: str, name: str | None = None) -> Object:
    """The only one of a kind."""
    found = of_kind(objects, kind, name)
    assert len(found) == 1, f"{len(found)} objects of kind {kind}"
    return found[0]
