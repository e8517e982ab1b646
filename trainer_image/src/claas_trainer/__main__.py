"""`python -m claas_trainer run|init|recover [--input PATH]`: one attempt at a job, the initial version of an adapter,
or a search for the version that a job has published."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from types import FrameType

_WORKER = "step"


class _ToldToEnd(BaseException):
    """SIGTERM arrived before the supervisor had installed its handler."""


def main() -> int:
    """Parse the command line and do it; returns the exit code of the contract."""
    if sys.argv[1:2] == [_WORKER]:
        return _work()
    # Before all imports: process 1 has no default action for SIGTERM, so an early one would be lost.
    signal.signal(signal.SIGTERM, _end)
    try:
        return _supervise()
    except _ToldToEnd:
        return _ended()


def _work() -> int:
    from claas_contract.outcome import TrainerCommand

    parser = argparse.ArgumentParser(description="internal: the process that the others start and watch")
    parser.add_argument(_WORKER)
    parser.add_argument("task", choices=[each.value for each in TrainerCommand])
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--report-to", type=int, required=True, help="file descriptor for events")
    parser.add_argument("--supervisor", type=int, required=True, help="process id to die with")
    arguments = parser.parse_args()
    from claas_trainer.attempt.worker import work

    return work(TrainerCommand(arguments.task), arguments.input, arguments.report_to, arguments.supervisor)


def _supervise() -> int:
    from claas_contract.outcome import TrainerCommand
    from claas_contract.places import INPUT_FILE

    parser = argparse.ArgumentParser(prog="python -m claas_trainer", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for task, text in (
        (TrainerCommand.RUN, "take one step and put its version into service"),
        (TrainerCommand.INIT, "make the initial version"),
        (TrainerCommand.RECOVER, "look for the version that a job has published; needs the volume only"),
    ):
        command = commands.add_parser(task.value, help=text)
        command.add_argument("--input", type=Path, default=Path(INPUT_FILE), help="the input document")
    arguments = parser.parse_args()
    from claas_trainer.paths import Paths
    from claas_trainer.supervisor.supervisor import supervise
    from claas_trainer.transport.pod import PodChannel

    paths = Paths.from_environment()
    return int(supervise(TrainerCommand(arguments.command), PodChannel(arguments.input, paths), paths))


def _end(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _ToldToEnd


def _ended() -> int:
    """Write the termination message. Uses few modules, because they may be half imported."""
    from claas_contract.outcome import ExitCode, FailureReason
    from claas_contract.places import TERMINATION_MESSAGE_FILE
    from claas_contract.result import TrainerResult

    message = "the pod was asked to end before the step began; nothing was published"
    result = TrainerResult(succeeded=False, reason=FailureReason.INTERRUPTED, message=message)
    path = Path(os.environ.get("CLAAS_TERMINATION_MESSAGE_FILE") or TERMINATION_MESSAGE_FILE)
    path.write_text(result.to_termination_message(), encoding="utf-8")
    return int(ExitCode.RETRYABLE)


if __name__ == "__main__":
    sys.exit(main())
