"""One word for one thing: a class name means the same wherever the product defines it."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
SAME_MEANING = {
    "Alias": "the companion's alias, in the companion and in its client, which can't import each other",
    "PauseMode": "the treatment of running requests, in the resource and in vLLM's API, which spell it differently",
    "Settings": "a program's settings from its environment; the programs never import each other",
    "SettingsError": "a program can't start with its settings; the programs never import each other",
}


def definitions() -> dict[str, list[str]]:
    """The modules that define each public class."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(ROOT.glob("*/src/*/**/*.py")):
        for name in re.findall(r"^class ([A-Z]\w*)", path.read_text(encoding="utf-8"), re.MULTILINE):
            found[name].append(str(path.relative_to(ROOT)))
    return found


def test_no_class_name_has_two_meanings_and_every_exception_is_needed() -> None:
    found = definitions()
    assert len(found) > 100
    assert {name for name, modules in found.items() if len(modules) > 1} == set(SAME_MEANING), found
