"""Attempts at jobs by workers in processes of their own, which tests kill."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from claas_contract.input import TrainerInput
from claas_contract.result import TrainerResult

_SERVER = Path(__file__).with_name("attempt_server.py")
_END_SECONDS = 30


class Attempts:
    """A process that makes attempts, one at a time."""

    def __init__(self, process: subprocess.Popen[str], input_path: Path) -> None:
        self._process = process
        self._input = input_path

    def begin(self, document: TrainerInput, death: str = "") -> int:
        """Have a worker make an attempt; returns its process id. `death`: see `attempt_server`."""
        self._input.write_text(document.model_dump_json())
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{self._input} {death}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def result(self) -> TrainerResult | None:
        """Of the attempt that was begun; None if its worker was killed."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        return TrainerResult.model_validate_json(line) if line else None


@contextmanager
def attempts(modules: list[str], environment: Mapping[str, str], scratch: Path) -> Iterator[Attempts]:
    """A process that has imported the modules; its log is in the scratch folder."""
    process = subprocess.Popen(
        [sys.executable, str(_SERVER), *modules],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(scratch / "log").open("w"),
        env={**os.environ, **environment},
        text=True,
    )
    try:
        yield Attempts(process, scratch / "input.json")
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(_END_SECONDS)
