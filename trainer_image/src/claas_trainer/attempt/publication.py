"""Publishes an engine's result as a version, and puts it into service."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from claas_contract.input import TrainerInput
from claas_contract.result import PublishedVersion
from claas_crds.v1alpha1.engine import EngineName
from claas_crds.v1alpha1.step import JobPhase, Timings
from claas_crds.v1alpha1.version import VersionVerdict
from claas_trainer.attempt.batch import Batch
from claas_trainer.attempt.head_fit import base_name
from claas_trainer.attempt.run_input import RunInput
from claas_trainer.engines.base import TrainedVersion
from claas_trainer.errors import VersionRejectedError
from claas_trainer.figures import seconds_since, significant
from claas_trainer.logs import log
from claas_trainer.messages.events import Published, Reporter
from claas_trainer.serving.pods import ServingPod
from claas_trainer.serving.swap import swap
from claas_trainer.store.record import VersionRecord
from claas_trainer.store.verdict import NOT_KEPT, keep_verdict
from claas_trainer.store.versions import StoredVersion, VersionStore


def publish(
    task: RunInput,
    store: VersionStore,
    number: int,
    engine: EngineName,
    trained: TrainedVersion,
    batch: Batch,
    metrics: Mapping[str, float],
    timings: Timings,
) -> tuple[StoredVersion, Timings]:
    """Publish the result of `engine` on `batch` as version `number`. `metrics`: metrics of serving. Raises
    StoreError: PUBLISH_CONFLICT if another job took the number meanwhile.
    """
    started = time.monotonic()
    document = task.document
    record = VersionRecord(
        number=number,
        lora_id=document.adapter.lora_id,
        created=datetime.now(UTC),
        parent=task.parent,
        jobs=list(task.jobs),
        feedback_ids=list(batch.feedback_ids),
        engine=engine.value,
        base_model=base_name(document.model),
        lora=document.lora,
        training=document.training,
        seed=document.training.seed,
        step=trained.provenance,
        state=trained.state,
        weights=trained.weights,
        libraries=dict(trained.libraries),
        metrics=significant({**trained.metrics, **batch.metrics, **metrics}),
        samples=batch.counts,
        timings=timings,
    )
    publication = store.publish(record, trained.files, owner=task.owner)
    publishing = seconds_since(started)
    log("published", version=number, created=publication.created, seconds=publishing)
    return publication.version, timings.model_copy(update={"publish": publishing})


async def put_in_service(
    document: TrainerInput,
    pods: Sequence[ServingPod],
    stored: StoredVersion,
    published: PublishedVersion,
    reporter: Reporter,
) -> tuple[PublishedVersion, list[str]]:
    """Puts the version into service; returns it with its verdict, and the pods that serve it. Raises
    VersionRejectedError."""
    if stored.rejected:
        message = f"version {published.number} was refused by serving before: {stored.verdict.why}"
        raise VersionRejectedError(published, message)
    if document.serving is None or not pods:
        return published, []
    reporter.phase(JobPhase.SWAPPING, f"version {published.number} on {len(pods)} pods")
    try:
        swapped = await swap(pods, document.serving, published)
    except VersionRejectedError as error:
        kept = keep_verdict(stored.folder, VersionVerdict.REJECTED, error.message)
        rejected = error.version.model_copy(update={"verdict": VersionVerdict.REJECTED})
        # So that the supervisor can report it if this process dies.
        reporter.send(Published(version=rejected))
        raise VersionRejectedError(rejected, error.message if kept else error.message + NOT_KEPT) from error
    if not swapped:
        return published, []
    keep_verdict(stored.folder, VersionVerdict.SERVED)
    return published.model_copy(update={"verdict": VersionVerdict.SERVED}), swapped
