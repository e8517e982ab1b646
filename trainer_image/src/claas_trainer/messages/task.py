"""The worker's command line, by which the supervisor passes on its task."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from claas_contract.outcome import TrainerCommand


def worker_command(task: TrainerCommand, input_path: Path, report_file_descriptor: int) -> list[str]:
    """Command line of the worker, which inherits the file descriptor for events."""
    return [
        sys.executable, "-m", "claas_trainer", "step", task.value, "--input", str(input_path),
        "--report-to", str(report_file_descriptor), "--supervisor", str(os.getpid()),
    ]  # fmt: skip
