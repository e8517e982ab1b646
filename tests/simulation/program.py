"""A program of the product as a process of its own, with its log."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.cluster.light import LightCluster
from tests.cluster.paths import REPOSITORY_ROOT


class Program:
    """`python -m <module>` against one API server; started, killed and started again."""

    def __init__(
        self, module: str, cluster: LightCluster, log: Path, sources: Sequence[str], settings: Mapping[str, str]
    ) -> None:
        self.log = log
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(log.parent),
            "PYTHONPATH": os.pathsep.join(str(REPOSITORY_ROOT / source) for source in sources),
            "PYTHONUNBUFFERED": "1",
            "KUBECONFIG": str(cluster.operator_kubeconfig),
            **settings,
        }
        self._module = module
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the process; it may not be ready yet."""
        assert not self.running
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._module], env=self.environment, stdout=output, stderr=subprocess.STDOUT
            )

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(timeout=10)

    def stop(self) -> int:
        """SIGTERM; the exit status. Killed when it does not end."""
        assert self._process is not None
        if self.running:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL

    def tail(self) -> str:
        """The end of the log, for messages of failed tests."""
        return self.log.read_text(errors="replace")[-4000:]
