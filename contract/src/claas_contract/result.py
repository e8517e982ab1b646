"""Result of an attempt: the termination message."""

from __future__ import annotations

from datetime import datetime

from pydantic import model_validator

from claas_contract.base import ContractModel
from claas_contract.jobs import JobReference
from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.step import InvalidSample, SampleCounts, Timings
from claas_crds.v1alpha1.version import VersionVerdict

TERMINATION_MESSAGE_LIMIT_BYTES = 4096
_LONGEST_SAMPLE_MESSAGES = range(240, -1, -20)
"""Lengths to which the messages about samples are cut, until a report fits."""


class PublishedVersion(ContractModel):
    """A version on the volume."""

    number: int
    path: str
    """Below the volume's root."""
    digest: str
    created: datetime
    parent: int | None = None
    jobs: list[JobReference] = []
    """The DistillJobs that it was trained for; none for an initial version. Release 0.1.0 named one, by `job_name`
    and `job_uid`."""
    metrics: dict[str, float] = {}
    weights: str | None = None
    """Address of its weights in the engine's service; None if they are in its folder alone."""
    verdict: VersionVerdict = VersionVerdict.UNTRIED
    """The verdict recorded beside the version on the volume."""

    @model_validator(mode="before")
    @classmethod
    def _of_one_job(cls, data: object) -> object:
        if not isinstance(data, dict) or data.keys().isdisjoint({"job_name", "job_uid"}):
            return data
        rest = {key: value for key, value in data.items() if key not in ("job_name", "job_uid")}
        name, uid = data.get("job_name"), data.get("job_uid")
        return rest if uid is None else {**rest, "jobs": [{"name": name or "", "uid": uid}]}


class TrainerResult(ContractModel):
    """Result of an attempt; at most 4,096 bytes as JSON."""

    succeeded: bool
    reason: FailureReason | None = None
    message: str = ""
    """One sentence for people: what was wrong, where, what to do. Never quotes a sample."""
    version: PublishedVersion | None = None
    """For `run`, the published version; for `init`, the head that was found, or the version made; for `recover`, the
    complete version that the job published, unless serving rejected it (None after a `recover` that succeeded: there
    is no such version). With the reasons VersionRejected and ParentRejected, the rejected version."""
    already_published: bool = False
    """Whether an earlier attempt had published it; this attempt took no step then."""
    began: datetime | None = None
    """When the work began, after programs were loaded; None if unknown."""
    swapped_pods: list[str] = []
    """Pods that serve the version."""
    samples: SampleCounts = SampleCounts()
    invalid_samples: list[InvalidSample] = []
    """With the reason InvalidSample, the samples that are wrong, by index; the first 50 of them."""
    timings: Timings = Timings()

    def to_termination_message(self) -> str:
        """JSON of at most 4,096 bytes; longer messages are cut, those about samples first."""
        text = self.model_dump_json(exclude_none=True)
        for longest in _LONGEST_SAMPLE_MESSAGES if self.invalid_samples else ():
            if _excess(text) <= 0:
                break
            text = self._with_sample_messages(longest).model_dump_json(exclude_none=True)
        excess = _excess(text)
        if excess <= 0:
            return text
        kept = self.message.encode()[: max(0, len(self.message.encode()) - excess - 64)].decode(errors="ignore")
        return (
            self._with_sample_messages(0)
            .model_copy(update={"message": kept + " [cut]", "swapped_pods": []})
            .model_dump_json(exclude_none=True)
        )

    def _with_sample_messages(self, longest: int) -> TrainerResult:
        cut = [each.model_copy(update={"message": _cut(each.message, longest)}) for each in self.invalid_samples]
        return self.model_copy(update={"invalid_samples": cut})


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest]}..."


def _excess(text: str) -> int:
    """Bytes by which a report is too long."""
    return len(text.encode()) - TERMINATION_MESSAGE_LIMIT_BYTES
