"""The operator at many objects: its own process against a real API server and etcd, with nodes, vLLM and trainers
played beside it.

    python bench/operator.py                          # 1,000 jobs of 98 kB, then 10,000 finished ones at rest
    python bench/operator.py --jobs 60 --adapters 6 --deployments 2 --finished 200 --rest-seconds 10

A step is played as instant; all requests between operator, API server and vLLM's companion are real. Beside it the
players and the server work on the same processors: what each took is told. Exits with 1 when a bar is missed.
"""

from __future__ import annotations

import sys

# This folder: its modules would hide others of their names, such as the standard library's `operator`.
sys.path.pop(0)

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("", "crds/src", "contract/src", "kube/src", "vllm_client/src", "vllm_companion/src", "operator/src")
sys.path[:0] = [str(ROOT / part) for part in SOURCES]

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bench.scale.bars import Figure, markdown, table
from bench.scale.load import Load, Size
from bench.scale.rest import Finished, Rest
from claas_operator.settings import Settings
from tests.cluster.audit import AuditLog, Calls
from tests.cluster.light import light_cluster
from tests.cluster.services.control_plane import free_ports
from tests.simulation.operator_process import OperatorProcess, install
from tests.simulation.scene import Scene, Simulation


@dataclass(frozen=True)
class Site:
    """An API server of its own, the operator's process (yet to be started), and what is played."""

    simulation: Simulation
    operator: OperatorProcess
    audit: AuditLog

    def scene(self, name: str) -> Scene:
        """A namespace."""
        scene = Scene(self.simulation, name)
        scene.set_up()
        return scene


@contextmanager
def site() -> Iterator[Site]:
    """A site for the length of a `with` block."""
    with light_cluster() as cluster, tempfile.TemporaryDirectory(prefix="bench-operator-") as folder:
        install(cluster)
        simulation = Simulation(cluster, Path(folder))
        # The chart's log level: what is logged costs time.
        settings = {"CLAAS_LOG_LEVEL": "INFO"}
        log = Path(folder) / "operator.log"
        operator = OperatorProcess(cluster, log, health_port=free_ports(1)[0], settings=settings)
        try:
            yield Site(simulation, operator, AuditLog(cluster.audit_log))
        finally:
            if operator.running:
                operator.stop()
            simulation.close()


def main() -> int:
    options = _options()
    document: dict[str, object] = {"machine": _machine(), "options": vars(options) | {"json": None}}
    figures: list[Figure] = []
    if options.jobs:
        size = Size(options.jobs, options.adapters, options.deployments, options.kilobytes, options.sleepers)
        with site() as at:
            say(f"the operator runs with {_settings(at.operator)}; {_machine()}")
            at.operator.start_leading()
            load = Load.prepare(
                size, at.scene("load"), at.scene("asleep"), at.operator, at.audit, options.deadline_seconds
            )
            outcome = load.run(options.deadline_seconds, say)
        _show(outcome.title, outcome.figures(), outcome.calls, max(outcome.completed, 1), "a job")
        figures += outcome.figures()
        document["load"] = _document(outcome.figures(), outcome.calls)
    if options.finished:
        with site() as at:
            finished = Finished(options.finished, options.adapters, options.deployments, options.finished_kilobytes)
            deadline = options.deadline_seconds
            rest = Rest.prepare(finished, at.scene("rest"), at.scene("asleep"), at.operator, at.audit, deadline, say)
            still = rest.run(options.rest_seconds, deadline)
        title = f"{options.finished:,} finished jobs of {options.finished_kilobytes:g} kB at rest"
        _show(title, still.figures(), still.calls, options.rest_seconds / 60, "a minute")
        figures += still.figures()
        document["rest"] = _document(still.figures(), still.calls)
    if options.json:
        options.json.write_text(json.dumps(document, indent=2, default=str) + "\n")
    return 0 if all(figure.met for figure in figures) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000, help="0: only the finished ones")
    parser.add_argument("--kilobytes", type=float, default=98, help="of each job's inline samples")
    parser.add_argument("--adapters", type=int, default=100)
    parser.add_argument("--deployments", type=int, default=10)
    parser.add_argument("--sleepers", type=int, default=3, help="vLLM pods whose trainers die meanwhile")
    parser.add_argument("--finished", type=int, default=10_000, help="finished jobs at rest; 0: only the load")
    parser.add_argument("--finished-kilobytes", type=float, default=2, help="of each one's inline samples")
    parser.add_argument("--rest-seconds", type=float, default=60, help="how long the rest is looked at")
    parser.add_argument("--deadline-seconds", type=float, default=900, help="of each part of it")
    parser.add_argument("--json", type=Path, help="a file for all figures")
    return parser.parse_args()


def say(line: str) -> None:
    """Tell of progress, apart from the tables."""
    print(line, file=sys.stderr, flush=True)


def _settings(operator: OperatorProcess) -> dict[str, object]:
    settings = Settings.from_environment(operator.environment)
    return {"resync_seconds": settings.resync_seconds, "log_level": settings.log_level}


def _machine() -> str:
    return f"{os.cpu_count()} processors, load average {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}"


def _show(title: str, figures: list[Figure], calls: Calls, share: float, unit: str) -> None:
    kinds = [(f"{count / share:.2f}", kind) for kind, count in calls.kinds.most_common()]
    print(f"\n## {title}\n\n{table(figures)}\n\n{markdown([(f'Calls {unit}', 'Kind'), *kinds])}", flush=True)


def _document(figures: list[Figure], calls: Calls) -> dict[str, object]:
    return {"figures": [figure.document() for figure in figures], "calls": dict(calls.kinds.most_common())}


if __name__ == "__main__":
    sys.exit(main())
