"""A Modal Volume as a container sees it: a mounted folder that is brought up to date and committed as a whole."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from claas_contract.outcome import FailureReason
from claas_trainer.errors import StoreError
from claas_trainer.logs import log

_TRIES = 4
_FIRST_PAUSE_SECONDS = 0.5
_TEXT_LENGTH = 200


@dataclass(frozen=True)
class MountedVolume:
    """A Volume below `root`. No file of it may be open or mapped when it is brought up to date or committed."""

    name: str
    root: Path
    reload_mount: Callable[[], None]
    """Shows what others have committed. Raises RuntimeError, and the SDK's errors."""
    commit_mount: Callable[[], None]
    """Commits what was written here. Raises alike."""
    sleep: Callable[[float], None] = time.sleep

    def reload(self) -> None:
        """See what others have committed. Raises StoreError."""
        self._retried("reload", self.reload_mount)

    def commit(self) -> None:
        """Commit what was written. What was refused may be committed with something later. Raises StoreError."""
        self._retried("commit", self.commit_mount)

    def _retried(self, what: str, call: Callable[[], None]) -> None:
        pause = _FIRST_PAUSE_SECONDS
        for left in reversed(range(_TRIES)):
            try:
                call()
                return
            except Exception as error:
                log(f"volume-{what}-failed", volume=self.name, error=type(error).__name__, tries_left=left)
                if not left:
                    raise StoreError(
                        FailureReason.STORAGE_FAILED,
                        f"the Modal Volume {self.name} refused a {what} {_TRIES} times"
                        f" ({type(error).__name__}: {str(error)[:_TEXT_LENGTH]}); the next attempt tries again",
                    ) from error
            self.sleep(pause)
            pause *= 2
