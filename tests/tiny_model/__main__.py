"""Builds the tiny model once into the cache, and prints where it lies.

`python -m tests.tiny_model [--out DIR] [--seed N]`
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tests.tiny_model.build import build, default_folder


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.tiny_model", description=__doc__)
    parser.add_argument("--out", type=Path, help="the folder to build (default: in the cache)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and corpus (default: 0)")
    arguments = parser.parse_args()
    folder: Path = arguments.out or default_folder(arguments.seed)
    started = time.monotonic()
    built = build(folder, arguments.seed)
    print(f"{folder} ({'built' if built else 'there already'}, {time.monotonic() - started:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
