"""The input of `run`, with all required parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from claas_contract.input import TrainerInput
from claas_contract.jobs import JobIdentity
from claas_trainer.errors import InputError


@dataclass(frozen=True)
class RunInput:
    """An input document for `run` without missing parts."""

    document: TrainerInput
    jobs: tuple[JobIdentity, ...]
    """One or more."""
    parent: int
    samples_file: Path

    @classmethod
    def of(cls, document: TrainerInput) -> RunInput:
        """Raises InputError if a part is missing."""
        missing = [name for name in ("jobs", "parent", "samples_file") if getattr(document, name) in (None, [])]
        if not document.jobs or document.parent is None or document.samples_file is None:
            raise InputError(f"the input for run lacks {', '.join(missing)}")
        return cls(document, tuple(document.jobs), document.parent, Path(document.samples_file))

    @property
    def owner(self) -> str:
        """UID of the first job, by which the attempt's staging folder and its journal are called."""
        return self.jobs[0].uid

    @property
    def attempt(self) -> int:
        """The attempt at the first job."""
        return self.jobs[0].attempt

    @property
    def uids(self) -> frozenset[str]:
        """Of all jobs."""
        return frozenset(job.uid for job in self.jobs)
