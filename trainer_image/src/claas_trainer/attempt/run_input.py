"""The input of `run`, with everything in it that a run needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from claas_contract.input import JobIdentity, TrainerInput
from claas_trainer.errors import InputError


@dataclass(frozen=True)
class RunInput:
    """An input document in which nothing is missing."""

    document: TrainerInput
    job: JobIdentity
    parent: int
    samples_file: Path

    @classmethod
    def of(cls, document: TrainerInput) -> RunInput:
        """Raises InputError when a part is missing."""
        missing = [name for name in ("job", "parent", "samples_file") if getattr(document, name) is None]
        if document.job is None or document.parent is None or document.samples_file is None:
            raise InputError(f"the input for run lacks {', '.join(missing)}")
        return cls(document, document.job, document.parent, Path(document.samples_file))
