"""Makes attempts in forks of a process that has imported all: real workers, without the wait for imports.

Its arguments are the modules to import for them. Reads the path of an input from each line, forks a worker for that
attempt, and says its process id and then its result. After the path a line may say at which entry of the run journal
the worker kills itself: `before call-made`, or `after call-made`.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from pathlib import Path

import torch

from claas_contract.outcome import TrainerCommand
from claas_trainer.attempt.worker import attempt
from claas_trainer.messages.events import Reporter
from claas_trainer.paths import Paths
from claas_trainer.store.journal import Entry, RunJournal


def main() -> None:
    for name in sys.argv[1:]:
        import_module(name)
    torch.set_num_threads(1)
    said = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        path, _, death = line.strip().partition(" ")
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            _work(Path(path), death, writing)
        os.close(writing)
        said.write(f"{child}\n")
        os.waitpid(child, 0)
        with os.fdopen(reading) as result:
            said.write(result.read() + "\n")


def _work(input_path: Path, death: str, descriptor: int) -> None:
    try:
        if death:
            _die_at(death)
        nobody = os.open(os.devnull, os.O_WRONLY)
        result = attempt(TrainerCommand.RUN, input_path, Paths.from_environment(), Reporter(nobody))
        os.write(descriptor, result.model_dump_json().encode())
    finally:
        os._exit(0)


def _die_at(death: str) -> None:
    when, _, kind = death.partition(" ")
    keep = RunJournal.keep

    def kept(self: RunJournal, entry: Entry) -> None:
        if entry.kind == kind and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        keep(self, entry)
        if entry.kind == kind:
            os.kill(os.getpid(), signal.SIGKILL)

    RunJournal.keep = kept  # type: ignore[method-assign]


main()
