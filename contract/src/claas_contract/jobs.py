"""The DistillJobs that a step is taken for. A step may carry several; documents of release 0.1.0 name one."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from pydantic import Field

from claas_contract.base import ContractModel


class JobReference(ContractModel):
    """A DistillJob of the adapter's namespace."""

    name: str
    uid: str


class JobIdentity(JobReference):
    """A DistillJob and the number of the attempt at it."""

    namespace: str
    attempt: int = Field(ge=1)


def names_any(jobs: Iterable[JobReference], uids: Collection[str]) -> bool:
    """Whether one of these UIDs is among the jobs'."""
    return any(job.uid in uids for job in jobs)
