"""Writes what is generated: from the models the CRD manifests, in crds/ and in the chart, and docs/conditions.md;
from the operator's metrics the table in docs/metrics.md.

`python tools/generate.py` writes; with `--check` it only says what is stale and exits with 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml

from tools.crd.condition_docs import conditions_page
from tools.crd.manifests import custom_resource_definitions
from tools.metrics_page import with_metrics_table

ROOT = Path(__file__).resolve().parent.parent
HEADER = "# Generated from crds/src/claas_crds by `make generate`. Do not edit.\n"
MARKDOWN_HEADER = f"<!-- {HEADER[2:].strip()} -->\n"


class PlainDumper(yaml.SafeDumper):
    """Writes equal parts out in full rather than as anchors and aliases."""

    def ignore_aliases(self, data: object) -> bool:
        """Never an alias."""
        return True


def generated_files() -> dict[Path, str]:
    """Every generated file and the text it should have."""
    files: dict[Path, str] = {}
    for name, definition in custom_resource_definitions().items():
        text = HEADER + yaml.dump(definition, Dumper=PlainDumper, sort_keys=False, width=110, allow_unicode=True)
        files[ROOT / "crds" / "manifests" / f"{name}.yaml"] = text
        files[ROOT / "helm" / "claas-operator" / "files" / "crds" / f"{name}.yaml"] = text
    files[ROOT / "docs" / "conditions.md"] = MARKDOWN_HEADER + conditions_page()
    metrics = ROOT / "docs" / "metrics.md"
    files[metrics] = with_metrics_table(metrics.read_text())
    return files


def main() -> int:
    """Write the files, or check them; the exit status is 1 when a check finds a stale one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say what is stale")
    check: bool = parser.parse_args().check
    stale = [path for path, text in generated_files().items() if not path.exists() or path.read_text() != text]
    for path in stale:
        if check:
            print(f"stale: {path.relative_to(ROOT)} (run `make generate`)", file=sys.stderr)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(generated_files()[path])
            print(f"wrote {path.relative_to(ROOT)}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
