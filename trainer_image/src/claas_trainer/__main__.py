"""`python -m claas_trainer run|init|recover [--input PATH]`: one attempt at a job, the initial version of an adapter,
or a look for what a job has published."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from claas_crds.contract import INPUT_FILE, ExitCode, TrainerCommand

_INTERRUPTED = int(ExitCode.RETRYABLE)


def main() -> int:
    """Parse the command line and do it; returns the exit code of the contract."""
    parser = argparse.ArgumentParser(prog="python -m claas_trainer", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("run", "take one step and put its version into service"),
        ("init", "make the initial version"),
        ("recover", "say which version a job has published; needs the volume alone, and changes nothing"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("--input", type=Path, default=Path(INPUT_FILE), help="the input document")
    worker = commands.add_parser("step", help="internal: the process that the others start and watch")
    worker.add_argument("task", choices=[each.value for each in TrainerCommand])
    worker.add_argument("--input", type=Path, required=True)
    worker.add_argument("--report-to", type=int, required=True, help="file descriptor for events")
    worker.add_argument("--supervisor", type=int, required=True, help="process id to die with")
    arguments = parser.parse_args()

    if arguments.command != "step":
        # Process 1 has no default for SIGTERM: without this, one that comes during the imports would be lost.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(_INTERRUPTED))

    if arguments.command == "step":
        from claas_trainer.worker import work

        return work(TrainerCommand(arguments.task), arguments.input, arguments.report_to, arguments.supervisor)

    from claas_trainer.paths import Paths
    from claas_trainer.supervisor import supervise

    return int(supervise(TrainerCommand(arguments.command), arguments.input, Paths.from_environment()))


if __name__ == "__main__":
    sys.exit(main())
