"""Looks for the version that a job has published without a report; read-only, needs only the volume."""

from __future__ import annotations

from claas_contract.input import TrainerInput
from claas_contract.result import TrainerResult
from claas_crds.v1alpha1.step import JobPhase
from claas_trainer.errors import InputError
from claas_trainer.logs import log
from claas_trainer.messages.events import Reporter
from claas_trainer.paths import Paths
from claas_trainer.store.journal import RunJournal, story
from claas_trainer.store.versions import VersionStore

_BEFORE_ALL_VERSIONS = -1


def recover(document: TrainerInput, paths: Paths, reporter: Reporter) -> TrainerResult:
    """Succeeds with the job's version, or without one if it published none that may be served.

    Raises TrainerError.
    """
    if not document.jobs:
        raise InputError("the input for recover lacks jobs")
    reporter.phase(JobPhase.PREPARING, "looking for the job's version")
    store = VersionStore(paths.adapter_folder(document.storage_path))
    uids = {job.uid for job in document.jobs}
    found = store.published_by(uids, after=_BEFORE_ALL_VERSIONS)
    log("looked", jobs=" ".join(sorted(uids)), version=found.record.number if found else None)
    if found is None:
        return TrainerResult(succeeded=True, message=_nothing(RunJournal(store.root, document.jobs[0].uid)))
    if found.rejected:
        message = f"the job's version {found.record.number} was refused by serving: {found.verdict.why}"
        return TrainerResult(succeeded=True, message=message)
    return TrainerResult(
        succeeded=True,
        message=f"the job has published version {found.record.number}",
        version=found.published(paths.below_volume(found.folder)),
        already_published=True,
        samples=found.record.samples,
        timings=found.record.timings,
    )


def _nothing(journal: RunJournal) -> str:
    """Message that nothing is published, with the progress in the job's journal."""
    said, came = "the job has published no version that is whole", story(journal.entries())
    return f"{said}; {came}" if came else said
