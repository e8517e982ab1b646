"""Runs the supervisor as a process of its own, around a stand-in worker."""

from __future__ import annotations

import sys
from pathlib import Path

from claas_contract.outcome import TrainerCommand
from claas_trainer.paths import Paths
from claas_trainer.supervisor.supervisor import supervise
from claas_trainer.transport.pod import PodChannel

if __name__ == "__main__":
    command = [sys.executable, *sys.argv[2:]]
    paths = Paths.from_environment()
    sys.exit(int(supervise(TrainerCommand.RUN, PodChannel(Path(sys.argv[1]), paths), paths, command)))
