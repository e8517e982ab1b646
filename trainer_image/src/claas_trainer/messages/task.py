"""The command line by which the supervisor hands on to its worker what it was asked for."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from claas_contract.outcome import TrainerCommand


def worker_command(task: TrainerCommand, input_path: Path, report_file_descriptor: int) -> list[str]:
    """The command line of this process's worker; events are told to the file descriptor, which it inherits."""
    return [
        sys.executable, "-m", "claas_trainer", "step", task.value, "--input", str(input_path),
        "--report-to", str(report_file_descriptor), "--supervisor", str(os.getpid()),
    ]  # fmt: skip
