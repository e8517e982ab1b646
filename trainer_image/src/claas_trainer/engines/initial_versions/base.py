"""Version 0 as an engine makes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from claas_trainer.store.content import FileContent


@dataclass(frozen=True)
class InitialVersion:
    """What an engine puts into version 0, which has no effect yet."""

    files: Mapping[str, FileContent]
    """By name."""
    layers: Sequence[str]
    """Names of the layers that the adapter is on; empty if the engine has not chosen them yet."""

    upload: Callable[[], str] | None = None
    """Puts the files where the engine's service finds them and returns their address there; raises TrainerError.
    None if the service needs none."""

    @property
    def size_bytes(self) -> int:
        """Estimated size of the files."""
        return sum(content.size_bytes for content in self.files.values())
