"""`python -m tests.upgrade FOLDER`: record what this release leaves in a cluster and on a volume."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.upgrade.record_cluster import record_cluster
from tests.upgrade.record_trainer import record_trainer

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as scratch:
        record_trainer(folder, Path(scratch))
        record_cluster(folder, Path(scratch))
