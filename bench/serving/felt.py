"""What steady clients felt: the process that plays them, and the tokens it saw in a stretch of time."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy
from numpy.typing import NDArray

_SCRIPT = Path(__file__).resolve().parent / "streams.py"
_END_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class Gaps:
    """Between two tokens of a stream, the wait for the first token of its next answer included. Milliseconds."""

    p50: float
    p99: float
    longest: float

    def __str__(self) -> str:
        return f"{self.p50:.1f} / {self.p99:.1f} / {self.longest:.0f}"


class Felt:
    """Tokens with the time at which they came, ordered by it, and the requests that failed."""

    def __init__(self, folder: Path, told: str) -> None:
        with numpy.load(folder / "felt.npz") as found:
            order = numpy.argsort(found["at"], kind="stable")
            self._at: NDArray[numpy.float64] = found["at"][order]
            self._stream: NDArray[numpy.int64] = found["stream"][order]
            self._count: NDArray[numpy.int64] = found["count"][order]
        summary = json.loads(told)
        self.answered: int = summary["answered"]
        self.failures: list[str] = summary["failures"]

    def rate(self, start: float, end: float) -> float:
        """Tokens a second."""
        inside = (self._at >= start) & (self._at < end)
        return float(self._count[inside].sum()) / (end - start)

    def gaps(self, start: float, end: float) -> Gaps:
        """Those that ended in that time, and of a stream that still waited at its end the wait until then."""
        found = []
        for stream in numpy.unique(self._stream):
            at = self._at[self._stream == stream]
            at = at[at < end]
            waits = numpy.diff(numpy.append(at, end))
            found.append(waits[numpy.append(at, end)[1:] >= start])
        each = 1000.0 * numpy.concatenate(found)
        return Gaps(float(numpy.percentile(each, 50)), float(numpy.percentile(each, 99)), float(each.max()))

    def silence(self, start: float, end: float) -> float:
        """The longest time in it in which no stream got a token, in milliseconds."""
        inside = self._at[(self._at > start) & (self._at < end)]
        return float(1000.0 * numpy.diff(numpy.concatenate([[start], inside, [end]])).max())


class Clients:
    """Steady streams on one model, from `start` to `stop`."""

    def __init__(self, url: str, model: str, streams: int, vocabulary: int, tokens: int, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._command = [
            sys.executable, str(_SCRIPT), "--url", url, "--model", model, "--streams", str(streams),
            "--vocabulary", str(vocabulary), "--tokens", str(tokens), "--out", str(folder / "felt.npz"),
        ]  # fmt: skip
        self._process: subprocess.Popen[str] | None = None

    def start(self, settle_seconds: float) -> None:
        """Begin, and wait until all are under way."""
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        time.sleep(settle_seconds)

    def stop(self, linger_seconds: float = 0.0) -> Felt:
        """End them after some more seconds; what they felt."""
        assert self._process is not None, "start() comes first"
        time.sleep(linger_seconds)
        told, _ = self._process.communicate(timeout=_END_TIMEOUT_SECONDS)
        if self._process.returncode != 0:
            raise RuntimeError(f"the clients' process ended with {self._process.returncode}")
        return Felt(self._folder, told)
