"""Runs the supervisor as a process of its own, around a stand-in worker."""

from __future__ import annotations

import sys
from pathlib import Path

from claas_trainer.paths import Paths
from claas_trainer.supervisor import supervise
from claas_trainer.task import Task

if __name__ == "__main__":
    sys.exit(int(supervise(Task.RUN, Path(sys.argv[1]), Paths.from_environment(), [sys.executable, *sys.argv[2:]])))
