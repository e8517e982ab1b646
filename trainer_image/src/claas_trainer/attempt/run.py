"""One attempt at a job: from its input to a version in service. Read `run` from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime

from claas_contract.engine import ENGINE_NEEDS
from claas_contract.input import TrainerInput
from claas_contract.outcome import FailureReason
from claas_contract.result import PublishedVersion, TrainerResult
from claas_crds.v1alpha1.engine import EngineName
from claas_crds.v1alpha1.step import JobPhase, Timings
from claas_trainer.attempt.batch import Batch, make_batch
from claas_trainer.attempt.head_fit import base_name, check_shape
from claas_trainer.attempt.pause_estimate import check_pause
from claas_trainer.attempt.publication import publish, put_in_service
from claas_trainer.attempt.run_input import RunInput
from claas_trainer.engines.base import EngineTask, RemoteTask, TrainingEngine
from claas_trainer.engines.registry import chosen_engine, make_engine
from claas_trainer.errors import VersionRejectedError
from claas_trainer.figures import seconds, seconds_since
from claas_trainer.logs import log
from claas_trainer.messages.events import Published, Reporter
from claas_trainer.paths import Paths
from claas_trainer.samples.reading import read_samples
from claas_trainer.serving.handover.base import Handover, PauseTimes
from claas_trainer.serving.handover.choice import make_handover
from claas_trainer.serving.pods import ServingPod, connect
from claas_trainer.serving.server_chat import server_chat
from claas_trainer.store.journal import AttemptBegun, RunJournal, StepTaken, VersionPublished, story
from claas_trainer.store.versions import StoredVersion, VersionStore


async def run(document: TrainerInput, paths: Paths, reporter: Reporter) -> TrainerResult:
    """Take the step, unless an earlier attempt has, and put its version into service. Raises TrainerError."""
    began = time.monotonic()
    task = RunInput.of(document)
    store = VersionStore(paths.adapter_folder(document.storage_path))
    journal = RunJournal(store.root, task.owner)
    # The engine is closed after the swap, because freeing sixteen gigabytes takes half a second.
    async with connect(document.serving, paths) as pods, AsyncExitStack() as resources:
        found = store.published_by(task.uids, after=task.parent)
        if found is not None:
            log("found-published", version=found.record.number, attempt=task.attempt)
            stored, timings = found, found.record.timings
            _settle(journal, task, found)
        else:
            stored, timings = await _take_step(task, store, journal, pods, paths, reporter, resources, began)
        published = stored.published(paths.below_volume(stored.folder))
        reporter.send(Published(version=published))
        started = time.monotonic()
        published, swapped = await put_in_service(document, pods, stored, published, reporter)
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
    task: RunInput,
    store: VersionStore,
    journal: RunJournal,
    pods: Sequence[ServingPod],
    paths: Paths,
    reporter: Reporter,
    resources: AsyncExitStack,
    began: float,
) -> tuple[StoredVersion, Timings]:
    """Prepare, pause, step, resume, publish. The engine is among `resources` then."""
    document = task.document
    reporter.phase(JobPhase.PREPARING, "checking samples")
    items = read_samples(task.samples_file)
    name = chosen_engine(document)
    parent = _read_parent(store, task, name, paths)
    # The number is chosen before the step, so publishing fails if another job publishes meanwhile.
    number = store.next_number()
    engine, needs = make_engine(name), ENGINE_NEEDS[name]
    handover = make_handover(document.serving, needs, pods, reporter)
    resources.push_async_callback(engine.close)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(handover.close)
        # Servers first, so that their faults are reported before gigabytes are read.
        await handover.check(None)
        reporter.phase(JobPhase.PREPARING, f"loading the model for {len(items)} samples")
        batch = await make_batch(document, items, needs, paths, await server_chat(pods))
        earlier, batch = _earlier_versions(store, task, batch)
        _begin(journal, task, name, number)
        ready = await engine.prepare(
            batch.payload,
            EngineTask(
                model=batch.model,
                parent=parent,
                version=number,
                tell_progress=lambda detail: reporter.phase(JobPhase.TRAINING, detail),
                access=handover.access,
                earlier=earlier,
                remote=RemoteTask(
                    document.engine,
                    document.lora,
                    base_name(document.model),
                    journal,
                    task.jobs[0],
                    paths.tinker_key,
                    paths.modal_token,
                    document.adapter,
                ),
            ),
        )
        batch = batch.without_versions(ready.unusable)
        tokens = batch.work_tokens(task.parent)
        check_pause(parent.record, ready, tokens, document.training.teacher, document.serving)
        store.prepare(owner=task.owner, attempt=task.attempt, needed_bytes=ready.version_bytes)
        await handover.check(ready.gpu)
        timings = Timings(prepare=seconds_since(began))
        log("prepared", seconds=timings.prepare, samples=len(items), version=number)

        timings, pause = await _step(engine, handover, batch, timings, reporter)

        reporter.phase(JobPhase.PUBLISHING, f"version {number}")
        journal.keep(StepTaken(attempt=task.attempt, at=datetime.now(UTC)))
        metrics = _serving_metrics(pause)
        stored, timings = publish(task, store, number, name, await engine.trained(), batch, metrics, timings)
        journal.keep(VersionPublished(attempt=task.attempt, at=datetime.now(UTC), version=number))
        resources.push_async_callback(engine.tidy, store, number)
        return stored, timings


def _begin(journal: RunJournal, task: RunInput, engine: EngineName, number: int) -> None:
    """Say in the job's journal that this attempt has begun, and in the log how far the one before it came."""
    earlier = story(journal.entries())
    if earlier:
        log("earlier-attempt", story=earlier)
    journal.prune_others()
    journal.keep(
        AttemptBegun(
            attempt=task.attempt,
            at=datetime.now(UTC),
            engine=engine.value,
            parent=task.parent,
            version=number,
        )
    )


def _settle(journal: RunJournal, task: RunInput, found: StoredVersion) -> None:
    """Close the job's journal, if the attempt that published died before it could."""
    entries = journal.entries()
    if entries and not any(isinstance(entry, VersionPublished) for entry in entries):
        journal.keep(VersionPublished(attempt=task.attempt, at=datetime.now(UTC), version=found.record.number))


async def _step(
    engine: TrainingEngine, handover: Handover, batch: Batch, timings: Timings, reporter: Reporter
) -> tuple[Timings, PauseTimes]:
    """The step inside the pause, and its effects on serving."""
    async with handover.paused() as pause:
        try:
            loading = time.monotonic()
            await engine.acquire()
            stepping = time.monotonic()
            counts = batch.counts
            reporter.phase(JobPhase.TRAINING, f"{counts.total} samples, {counts.response_tokens} response tokens")
            response = await engine.distill(batch.payload)
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
    """Metrics of serving for the step."""
    return {} if pause.slowdown_percent is None else {"serving_slowdown_percent": pause.slowdown_percent}


def _read_parent(store: VersionStore, task: RunInput, engine: EngineName, paths: Paths) -> StoredVersion:
    parent = store.read(task.parent)
    store.verify(parent)
    if parent.rejected:
        message = f"version {task.parent} was refused by serving, so no step starts from it: {parent.verdict.why}"
        published = parent.published(paths.below_volume(parent.folder))
        raise VersionRejectedError(published, message, FailureReason.PARENT_REJECTED)
    check_shape(engine, task.document.lora, parent)
    return parent


def _earlier_versions(store: VersionStore, task: RunInput, batch: Batch) -> tuple[dict[int, StoredVersion], Batch]:
    """The versions besides the parent that samples name, and the batch without those that can't be used."""
    named = batch.payload.versions - {task.parent}
    found = {number: version for number in sorted(named) if (version := store.with_adapter(number)) is not None}
    return found, batch.without_versions(named - found.keys())


def _summary(published: PublishedVersion, swapped: Sequence[str], pods: Sequence[ServingPod]) -> str:
    waiting = [pod.pod.name for pod in pods if pod.pod.name not in swapped]
    text = f"version {published.number} is published and served by {len(swapped)} of {len(pods)} pods"
    return f"{text}; not yet by {', '.join(waiting)}" if waiting else text
