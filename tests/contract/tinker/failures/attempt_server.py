"""Makes attempts in forks of a process that has imported all: real workers, without the wait for imports.

Reads a number from each line, forks a worker for that attempt, and says its process id and then its result.
"""

from __future__ import annotations

import os

os.environ["TINKER_TELEMETRY"] = "0"

import sys
from pathlib import Path

import torch

import claas_trainer.attempt.run
import claas_trainer.engines.tinker.step  # noqa: F401 - for the forks
from claas_contract.outcome import TrainerCommand
from claas_trainer.attempt.worker import attempt
from claas_trainer.messages.events import Reporter
from claas_trainer.paths import Paths


def main() -> None:
    torch.set_num_threads(1)
    said = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            _work(Path(line.strip()), writing)
        os.close(writing)
        said.write(f"{child}\n")
        os.waitpid(child, 0)
        with os.fdopen(reading) as result:
            said.write(result.read() + "\n")


def _work(input_path: Path, descriptor: int) -> None:
    try:
        nobody = os.open(os.devnull, os.O_WRONLY)
        result = attempt(TrainerCommand.RUN, input_path, Paths.from_environment(), Reporter(nobody))
        os.write(descriptor, result.model_dump_json().encode())
    finally:
        os._exit(0)


main()
