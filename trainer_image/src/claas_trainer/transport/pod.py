"""The channel of a pod that takes one attempt: a mounted file, progress by HTTP, the termination message."""

from __future__ import annotations

from asyncio import Server
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from claas_contract.input import TrainerInput
from claas_contract.progress import Progress
from claas_contract.result import TrainerResult
from claas_trainer.errors import InputError
from claas_trainer.logs import log
from claas_trainer.messages.input import parse_input
from claas_trainer.paths import Paths
from claas_trainer.transport.progress_server import serve_progress


class Channel(Protocol):
    """The supervisor's channel to the operator."""

    @property
    def input_path(self) -> Path:
        """Path of the input document for the worker."""

    def read_input(self) -> TrainerInput:
        """The input document. Raises InputError."""

    async def tell_progress(self, current: Callable[[], Progress]) -> Server | None:
        """Serve progress until the server is closed; None if that is not possible."""

    def tell_result(self, result: TrainerResult) -> None:
        """Report the result of the attempt. Failures are logged."""


@dataclass(frozen=True)
class PodChannel:
    """A `Channel` over the files and the port of a pod."""

    input_path: Path
    paths: Paths

    def read_input(self) -> TrainerInput:
        """The mounted document. Raises InputError, which names the field and quotes no value."""
        return read_input(self.input_path)

    async def tell_progress(self, current: Callable[[], Progress]) -> Server | None:
        """Serve it on the pod's progress port; None if the port is not available."""
        try:
            return await serve_progress(self.paths.progress_port, current)
        except OSError as error:
            log("progress-not-served", port=self.paths.progress_port, error=type(error).__name__)
            return None

    def tell_result(self, result: TrainerResult) -> None:
        """Write the termination message."""
        path = self.paths.termination_message
        try:
            path.write_text(result.to_termination_message(), encoding="utf-8")
        except OSError as error:
            log("termination-message-failed", path=str(path), error=type(error).__name__)


def read_input(path: Path) -> TrainerInput:
    """The input document in a file. Raises InputError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: can't be read ({type(error).__name__}); check the mount") from error
    return parse_input(data, str(path))
