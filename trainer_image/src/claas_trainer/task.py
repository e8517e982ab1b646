"""What a trainer pod is asked for, and the command line by which the supervisor hands it to its worker."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path


class Task(StrEnum):
    """What a trainer pod is asked for."""

    RUN = "run"
    """One attempt at a job."""
    INIT = "init"
    """The initial version of an adapter."""
    RECOVER = "recover"
    """Whether a job whose trainer said nothing has published a version."""


def worker_command(task: Task, input_path: Path, report_file_descriptor: int) -> list[str]:
    """The command line of this process's worker; events are told to the file descriptor, which it inherits."""
    return [
        sys.executable, "-m", "claas_trainer", "step", task.value, "--input", str(input_path),
        "--report-to", str(report_file_descriptor), "--supervisor", str(os.getpid()),
    ]  # fmt: skip
