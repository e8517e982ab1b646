"""What every page for readers keeps to: its links lead somewhere, and its commands do what it says."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "bench").glob("*.md")])


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as they are on GitHub."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_are_there(page: Path) -> None:
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert dead == []


def test_there_are_pages_with_links() -> None:
    assert len(PAGES) > 10


def test_the_glossary_explains_each_term_once() -> None:
    rows = re.findall(r"^\| ([^|]+) \|", (ROOT / "docs" / "glossary.md").read_text("utf-8"), re.MULTILINE)
    terms = Counter(rows)
    del terms["Term"]
    assert len(terms) > 50
    assert [term for term, count in terms.items() if count > 1] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_upgrade_leaves_out_values_that_are_new_in_the_chart(page: Path) -> None:
    commands = re.findall(r"^helm upgrade (?:.*\\\n)*.*$", page.read_text("utf-8"), re.MULTILINE)
    assert [command for command in commands if "--reset-then-reuse-values" not in command] == []
