"""What clients feel of whole updates beside them, by each hand-over: a real vLLM, steady streams, the real trainer.

    python bench/serving_gap.py --shape qwen3-8b --streams 8,64     # on a CUDA GPU with vLLM installed
    python bench/serving_gap.py --shape small --streams 2 --work 4,64,16,64 --settle 3   # on the CPU

An update: step, publish to a local disk, swap, and the first answer of the new version. On a GPU it also looks at the
weights that vLLM serves, from a third process: their checksum before and after 20 steps of a trainer in namespaces of
its own, and the next token's log-probability by the trainer's forward and by vLLM; and it kills each side in the
midst of a step. Nothing is downloaded: model and adapter are random. What does not hold is said, and makes it exit
with 1.
"""

from __future__ import annotations

import sys

# This folder: its modules would hide others of their names, such as the standard library's `operator`.
sys.path.pop(0)

import argparse
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / part) for part in ("", "crds/src", "contract/src", "vllm_client/src", "trainer_image/src")]

from bench.compute.shapes import SHAPES
from bench.compute.work import Work
from bench.serving.felt import Clients
from bench.serving.gap_table import HEADING, Row, row
from bench.serving.server import Server
from bench.serving.sharing_checks import Checks, say, taken_mb
from bench.serving.updates import NAME, Pod, Way
from claas_crds.v1alpha1.serving import HandoverKind
from claas_trainer.gpu import visible_gpus

SHARING = (Way("Share", HandoverKind.SHARE), Way("Share, at most 40 % slower", HandoverKind.SHARE, 40))
SLEEPING = (
    Way("Sleep", HandoverKind.SLEEP),
    Way("drain, load, step, resume", HandoverKind.SLEEP, pauses_first=True),
)
_ON_CPU = ("--dtype", "float32", "--enforce-eager", "--api-server-count", "1", "--max-num-seqs", "16")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--streams", default="8,64", help="loads, as numbers of streams")
    parser.add_argument("--work", default="16,512,128,512", help="samples, and tokens of prompt, feedback, response")
    parser.add_argument("--updates", type=int, default=2, help="of each kind at each load")
    parser.add_argument("--settle", type=float, default=8.0, help="seconds of undisturbed traffic first")
    parser.add_argument("--answer-tokens", type=int, default=512)
    parser.add_argument("--gpu-memory-utilization", default="0.5", help="vLLM's")
    parser.add_argument("--only", choices=["share", "sleep"], help="one of the two servers")
    parser.add_argument("--no-checks", action="store_true", help="only the table")
    parser.add_argument("--folder", type=Path, help="kept, with a model that is there already; by default a new one")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="serving-gap-"))
    bench = Bench(options, folder)
    try:
        bench.run()
    finally:
        if options.folder is None:
            shutil.rmtree(folder)
    print("\n".join(["", HEADING, *(each.line() for each in bench.rows)]), flush=True)
    for shortfall in bench.shortfalls:
        say(f"not kept: {shortfall}")
    return 1 if bench.shortfalls else 0


class Bench:
    """The servers one after the other, and the table of both."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options, self._folder = options, folder
        self._on_gpu = bool(visible_gpus())
        self._shape = SHAPES[options.shape]
        samples, prompt, feedback, response = map(int, options.work.split(","))
        self._work = Work(samples, prompt, feedback, response)
        self._model = folder / "model"
        self.rows: list[Row] = []
        self.shortfalls: list[str] = []

    def run(self) -> None:
        """All of it: fills `rows` and `shortfalls`. Raises RuntimeError."""
        if not self._model.exists():
            # In another process: this one takes no GPU memory.
            script = [sys.executable, str(ROOT / "bench/serving/model_folder.py"), "--shape", self._options.shape]
            subprocess.run([*script, "--out", str(self._model)], check=True)
            say(f"model written: {self._options.shape}")
        self._empty_mb = taken_mb()
        if self._options.only != "sleep":
            self._share()
        if self._options.only != "share":
            self._sleep()

    def _share(self) -> None:
        server = self._server("share", "--worker-extension-cls", "claas_vllm.WeightExport")
        try:
            pod = self._started(server)
            checks = Checks(self._folder, self._model, self._options.shape, server, pod, self._empty_mb)
            wanted = self._on_gpu and not self._options.no_checks
            if wanted:
                checks.before()
            self._measure(server, pod, SHARING)
            if wanted:
                self._check(checks.logprobs)
                self._check(checks.twenty_steps)
                self._check(lambda: checks.trainer_killed(SHARING[1]))
                self._check(lambda: checks.vllm_killed(SHARING[1]))
        finally:
            server.stop()

    def _check(self, check: Callable[[], None]) -> None:
        """What does not hold is kept for the end: the rest is worth knowing too."""
        try:
            check()
        except AssertionError as error:
            self.shortfalls.append(str(error))
            say(f"FAILED: {error}")

    def _sleep(self) -> None:
        flags = ("--enable-sleep-mode",) if self._on_gpu else ()
        server = self._server("sleep", *flags)
        try:
            self._measure(server, self._started(server), SLEEPING)
        finally:
            server.stop()

    def _server(self, name: str, *flags: str) -> Server:
        if self._on_gpu:
            flags += ("--dtype", "bfloat16", "--gpu-memory-utilization", self._options.gpu_memory_utilization)
        else:
            flags += _ON_CPU
        return Server(self._model, self._folder / name, self._on_gpu, flags)

    def _started(self, server: Server) -> Pod:
        say(f"vLLM ({server.folder.name}) answers after {server.start():.0f} s")
        pod = Pod(server.folder, self._model, server, self._work, self._shape.vocabulary)
        pod.initial()
        return pod

    def _measure(self, server: Server, pod: Pod, ways: tuple[Way, ...]) -> None:
        for streams in map(int, self._options.streams.split(",")):
            for way in ways:
                for number in range(self._options.updates):
                    clients = Clients(
                        server.url, NAME, streams, self._shape.vocabulary, self._options.answer_tokens,
                        server.folder / f"{streams}-{ways.index(way)}-{number}",
                    )  # fmt: skip
                    clients.start(self._options.settle)
                    try:
                        update = pod.take(way)
                    finally:
                        # For what comes after the swap.
                        felt = clients.stop(linger_seconds=self._options.settle / 2)
                    self._keep(row(update, streams, felt, self._options.settle))
                    for failure in felt.failures[:5]:
                        say(f"failed: {failure}")

    def _keep(self, found: Row) -> None:
        """At once, for whoever stops the bench early."""
        say(found.line())
        self.rows.append(found)
        if self._on_gpu and not found.pauses_first:
            self.shortfalls += found.shortfalls()
        if self._options.json:
            self._options.json.write_text(json.dumps([each.figures() for each in self.rows], indent=1))


if __name__ == "__main__":
    sys.exit(main())
