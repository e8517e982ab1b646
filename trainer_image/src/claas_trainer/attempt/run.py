"""One attempt at a job: from its input to a version in service. Read `run` from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from claas_contract.input import JobIdentity, TrainerInput
from claas_contract.outcome import FailureReason
from claas_contract.result import PublishedVersion, TrainerResult
from claas_crds.v1alpha1.distill_job import JobPhase, SampleCounts, Timings
from claas_crds.v1alpha1.lora_adapter import VersionVerdict
from claas_crds.v1alpha1.training import DistillBatchItem, DistillBatchRequestPayload
from claas_trainer.attempt.lineage import base_name, check_shape
from claas_trainer.attempt.pause_estimate import check_pause
from claas_trainer.engines.base import PreparedStep, StepPlan, TrainingEngine
from claas_trainer.engines.registry import chosen_engine, make_engine
from claas_trainer.errors import InputError, VersionRejectedError
from claas_trainer.figures import seconds, seconds_since, significant
from claas_trainer.logs import log
from claas_trainer.messages.events import Published, Reporter
from claas_trainer.paths import Paths
from claas_trainer.samples.reading import read_samples
from claas_trainer.serving.handover.base import Handover, PauseTimes
from claas_trainer.serving.handover.choice import make_handover
from claas_trainer.serving.pods import ServingPod, connect
from claas_trainer.serving.server_chat import server_chat
from claas_trainer.serving.swap import swap
from claas_trainer.store.record import VersionRecord
from claas_trainer.store.verdict import NOT_KEPT, keep_verdict
from claas_trainer.store.versions import StoredVersion, VersionStore


@dataclass(frozen=True)
class Attempt:
    """A `run` input with everything in it that a run needs."""

    document: TrainerInput
    job: JobIdentity
    parent: int
    samples_file: Path

    @classmethod
    def of(cls, document: TrainerInput) -> Attempt:
        """Raises InputError when a part is missing."""
        missing = [name for name in ("job", "parent", "samples_file") if getattr(document, name) is None]
        if document.job is None or document.parent is None or document.samples_file is None:
            raise InputError(f"the input for run lacks {', '.join(missing)}")
        return cls(document, document.job, document.parent, Path(document.samples_file))


async def run(document: TrainerInput, paths: Paths, reporter: Reporter) -> TrainerResult:
    """Take the step once, whatever number of attempts it needs, and put its version into service.

    Raises TrainerError.
    """
    began = time.monotonic()
    attempt = Attempt.of(document)
    store = VersionStore(paths.adapter_folder(document.storage_path))
    # The engine is closed after the swap: to give sixteen gigabytes back takes half a second.
    async with connect(document.serving, paths) as pods, AsyncExitStack() as resources:
        found = store.published_by(attempt.job.uid, after=attempt.parent)
        if found is not None:
            log("found-published", version=found.record.number, attempt=attempt.job.attempt)
            stored, timings = found, found.record.timings
        else:
            stored, timings = await _take_step(attempt, store, pods, paths, reporter, resources, began)
        published = stored.published(paths.below_volume(stored.folder))
        reporter.send(Published(version=published))
        started = time.monotonic()
        published, swapped = await _put_in_service(document, pods, stored, published, reporter)
        return TrainerResult(
            succeeded=True,
            message=_summary(published, swapped, pods),
            version=published,
            already_published=found is not None,
            swapped_pods=swapped,
            samples=stored.record.samples,
            timings=timings.model_copy(update={"swap": seconds_since(started)}),
        )


async def _take_step(
    attempt: Attempt,
    store: VersionStore,
    pods: Sequence[ServingPod],
    paths: Paths,
    reporter: Reporter,
    resources: AsyncExitStack,
    began: float,
) -> tuple[StoredVersion, Timings]:
    """Prepare, pause, step, resume, publish. The engine is among `resources` then."""
    document = attempt.document
    reporter.phase(JobPhase.PREPARING, "checking samples")
    payload = _payload(document, read_samples(attempt.samples_file))
    parent = _read_parent(store, attempt, paths)
    # The number is chosen before the step: whoever publishes meanwhile makes publishing fail.
    number = store.next_number()
    engine = make_engine(chosen_engine(document))
    handover = make_handover(document.serving, engine, pods, reporter)
    resources.push_async_callback(engine.close)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(handover.close)
        # Servers first: what is wrong with them is said before gigabytes are read.
        await handover.check(None)
        plan = StepPlan(
            document.model,
            document.lora,
            parent,
            number,
            paths,
            lambda detail: reporter.phase(JobPhase.TRAINING, detail),
            handover.weights,
            handover.export,
            handover.rest,
            await server_chat(pods),
        )
        reporter.phase(JobPhase.PREPARING, f"loading the model for {len(payload.samples)} samples")
        prepared = await engine.prepare(payload, plan)
        check_pause(parent.record, prepared, document.training, document.serving)
        store.prepare(owner=attempt.job.uid, attempt=attempt.job.attempt, needed_bytes=prepared.version_bytes)
        await handover.check(prepared.gpu)
        timings = Timings(prepare=seconds_since(began))
        log("prepared", seconds=timings.prepare, samples=len(payload.samples), version=plan.version)

        timings, pause = await _step(engine, handover, payload, prepared, timings, reporter)

        reporter.phase(JobPhase.PUBLISHING, f"version {plan.version}")
        return await _publish(attempt, store, plan, engine, prepared.counts, timings, _serving_metrics(pause))


async def _step(
    engine: TrainingEngine,
    handover: Handover,
    payload: DistillBatchRequestPayload,
    prepared: PreparedStep,
    timings: Timings,
    reporter: Reporter,
) -> tuple[Timings, PauseTimes]:
    """The step itself, inside the pause, and what serving noticed of it."""
    async with handover.paused() as pause:
        try:
            reporter.phase(JobPhase.TRAINING, "weights to the device")
            loading = time.monotonic()
            await engine.acquire()
            stepping = time.monotonic()
            counts = prepared.counts
            reporter.phase(JobPhase.TRAINING, f"{counts.total} samples, {counts.response_tokens} response tokens")
            response = await engine.distill(payload)
            step_seconds = seconds_since(stepping)
        finally:
            releasing = time.monotonic()
            await engine.release()
        release_seconds = seconds_since(releasing)
    log("stepped", lora_id=response.lora_id, seconds=step_seconds, serving_gap=pause.serving_gap)
    taken = {
        "sleep": pause.sleep,
        "load": seconds(stepping - loading),
        "step": step_seconds,
        "release": release_seconds,
        "wake": pause.wake,
        "serving_gap": pause.serving_gap,
    }
    return timings.model_copy(update=taken), pause


def _serving_metrics(pause: PauseTimes) -> dict[str, float]:
    """What is told of serving among the step's metrics."""
    return {} if pause.slowdown_percent is None else {"serving_slowdown_percent": pause.slowdown_percent}


async def _publish(
    attempt: Attempt,
    store: VersionStore,
    plan: StepPlan,
    engine: TrainingEngine,
    counts: SampleCounts,
    timings: Timings,
    serving_metrics: Mapping[str, float],
) -> tuple[StoredVersion, Timings]:
    started = time.monotonic()
    document = attempt.document
    trained = await engine.trained()
    record = VersionRecord(
        number=plan.version,
        lora_id=document.adapter.lora_id,
        created=datetime.now(UTC),
        parent=attempt.parent,
        job_namespace=attempt.job.namespace,
        job_name=attempt.job.name,
        job_uid=attempt.job.uid,
        attempt=attempt.job.attempt,
        engine=chosen_engine(document).value,
        base_model=base_name(document.model),
        lora=document.lora,
        training=document.training,
        seed=document.training.seed,
        step=trained.step,
        libraries=dict(trained.libraries),
        metrics=significant({**trained.metrics, **serving_metrics}),
        samples=counts,
        timings=timings,
    )
    publication = store.publish(record, trained.files, owner=attempt.job.uid)
    publishing = seconds_since(started)
    log("published", version=plan.version, created=publication.created, seconds=publishing)
    return publication.version, timings.model_copy(update={"publish": publishing})


async def _put_in_service(
    document: TrainerInput,
    pods: Sequence[ServingPod],
    stored: StoredVersion,
    published: PublishedVersion,
    reporter: Reporter,
) -> tuple[PublishedVersion, list[str]]:
    """The version with serving's verdict on it, and the pods that serve it. Raises VersionRejectedError."""
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
        # The supervisor says so, should this process die before it ends.
        reporter.send(Published(version=rejected))
        raise VersionRejectedError(rejected, error.message if kept else error.message + NOT_KEPT) from error
    if not swapped:
        return published, []
    keep_verdict(stored.folder, VersionVerdict.SERVED)
    return published.model_copy(update={"verdict": VersionVerdict.SERVED}), swapped


def _payload(document: TrainerInput, samples: list[DistillBatchItem]) -> DistillBatchRequestPayload:
    try:
        return DistillBatchRequestPayload(
            lora_id=document.adapter.lora_id, training=document.training, samples=samples
        )
    except ValidationError:
        raise InputError("adapter.lora_id: is no CLaaS identifier such as user123/coder-v1") from None


def _read_parent(store: VersionStore, attempt: Attempt, paths: Paths) -> StoredVersion:
    parent = store.read(attempt.parent)
    store.verify(parent)
    if parent.rejected:
        message = f"version {attempt.parent} was refused by serving, so no step starts from it: {parent.verdict.why}"
        published = parent.published(paths.below_volume(parent.folder))
        raise VersionRejectedError(published, message, FailureReason.PARENT_REJECTED)
    check_shape(attempt.document.lora, parent)
    return parent


def _summary(published: PublishedVersion, swapped: Sequence[str], pods: Sequence[ServingPod]) -> str:
    waiting = [pod.pod.name for pod in pods if pod.pod.name not in swapped]
    text = f"version {published.number} is published and served by {len(swapped)} of {len(pods)} pods"
    return f"{text}; not yet by {', '.join(waiting)}" if waiting else text
