"""Passes: observe, plan, act and write status for one key. Passes are idempotent, and all their state is in the
cluster."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

from claas_crds.v1alpha1.conditions import JobReason
from claas_crds.v1alpha1.distill_job import KIND as JOB_KIND
from claas_crds.v1alpha1.distill_job import DistillJobStatus
from claas_crds.v1alpha1.lora_adapter import KIND as ADAPTER_KIND
from claas_crds.v1alpha1.lora_adapter import LoraAdapterStatus
from claas_crds.v1alpha1.step import JobPhase
from claas_kube.api import Api
from claas_kube.errors import ApiError, Conflict
from claas_kube.objects.resources import AdapterObject, JobObject
from claas_kube.resources import ADAPTERS, DISTILL_JOBS
from claas_operator.act.apply import Applier
from claas_operator.act.events import Recorder
from claas_operator.act.pass_failures import refused_step, trouble_of
from claas_operator.act.status_writer import StatusWriter
from claas_operator.clients.cluster_index import ClusterIndex
from claas_operator.clients.job_view import known_job
from claas_operator.clients.modal.apps import ModalApps
from claas_operator.clients.reader import Reader
from claas_operator.keys import Key, Kind
from claas_operator.loop.lease_passes import LeasePasses
from claas_operator.loop.transitions import adapter_transition, job_transition, lease_transitions, log_transitions
from claas_operator.loop.turns import Turns
from claas_operator.loop.work_queue import WorkQueue
from claas_operator.metrics.counts import Metrics
from claas_operator.metrics.definitions import LoadResult, PassResult
from claas_operator.observe.worlds import Observer
from claas_operator.plan import actions
from claas_operator.plan.adapter.adapter import plan_adapter
from claas_operator.plan.engine.leases import StepLeases
from claas_operator.plan.job.job import plan_job
from claas_operator.plan.job_draft import TELL_ADAPTER_SECONDS
from claas_operator.plan.lease import WATCH_SECONDS
from claas_operator.plan.queueing import finished
from claas_operator.plan.server.load_failures import LoadFailures
from claas_operator.plan.world import TrainerState

log = logging.getLogger(__name__)

CONFLICT_SECONDS = 0.2
"""Seconds until a pass is repeated after a conflict."""


class Reconciler:
    """Runs the passes."""

    def __init__(
        self,
        api: Api,
        read: Reader,
        index: ClusterIndex,
        observer: Observer,
        applier: Applier,
        recorder: Recorder,
        metrics: Metrics,
        step_leases: StepLeases,
        modal: ModalApps,
    ) -> None:
        self._api = api
        self._read = read
        self._status = StatusWriter(api, metrics)
        self.metrics = metrics
        self.jobs = index.jobs
        self._index = index
        self._observer = observer
        self._applier = applier
        self._recorder = recorder
        self._loads = LoadFailures()
        self.queue = WorkQueue(
            self.reconcile, describe=lambda error: trouble_of(error).message, on_start=metrics.waited
        )
        for kind in Kind:
            metrics.watch_queue(kind, partial(self.queue.waiting, kind))
        self._modal = modal
        modal.wake = self.queue.wake
        modal.decided = lambda served: metrics.loaded(LoadResult.LOADED if served else LoadResult.REFUSED)
        self._told: dict[Key, datetime] = {}
        """When the status of jobs that are not done was last written. What is lost of it is told a little sooner."""
        self.step_leases = step_leases
        turns = Turns(index, observer)
        self.leases = LeasePasses(read, index.jobs, observer, applier, turns, self.queue.wake)

    async def reconcile(self, key: Key) -> float | None:
        """One pass; returns the seconds until the next one."""
        with self.metrics.one_pass(key.kind) as ending:
            try:
                match key.kind:
                    case Kind.ADAPTER:
                        return await self._adapter(key)
                    case Kind.JOB:
                        return await self._job(key)
                    case Kind.LEASE:
                        return await self.leases.run(key)
            except Conflict as conflict:
                ending.result = PassResult.CONFLICT
                log.debug("%s %s/%s is decided on anew: %s", key.kind, key.namespace, key.name, conflict)
                return CONFLICT_SECONDS
            except Exception as error:
                # Any failure goes to the object's status; the queue then retries the key.
                if await self._status.tell(key, error, self.queue.failures(key)):
                    raise
                return 0.0  # It was deleted during the pass; the next pass handles that.

    def failing_loads(self, namespace: str, adapter: str) -> int:
        """In how many pods the last try to load the adapter's version failed."""
        return self._loads.count(namespace, adapter) + self._modal.failing(namespace, adapter)

    def resync(self) -> None:
        """Wake every object that has something to do."""
        for (namespace, name), entry in self._index.adapters.entries(None).items():
            key = Key(Kind.ADAPTER, namespace, name)
            self.queue.wake(key)
            lease = self.step_leases.name(entry.value) if entry.value is not None else None
            if lease is not None and self._index.leases.entry(namespace, lease) is None:
                # Somebody deleted the Lease, or it was not made yet: no pass over it wakes the queued jobs.
                self._wake_jobs(key, queued=True)
        for namespace, name in self.jobs.collection.entries(None):
            self.wake_job(namespace, name)
        for held in self._index.serving_leases(None):
            # Of a free one of an adapter, only jobs that wait would want something.
            if held.adapter is None or held.grant is not None or held.unaccounted:
                self.queue.wake(Key(Kind.LEASE, held.namespace, held.name))

    def wake_job(self, namespace: str, name: str) -> None:
        """Wake a job when it has something to do, is gone, or can't be read."""
        job = self.jobs.get(namespace, name)
        due = job.due_in(datetime.now(UTC)) if job is not None else 0.0
        if due is not None:
            self.queue.wake(Key(Kind.JOB, namespace, name), due)

    async def _adapter(self, key: Key) -> float | None:
        adapter = await self._read.adapter_object(key.namespace, key.name)
        if adapter is None or adapter.metadata.deletion_timestamp is not None:
            self._loads.forget(key.namespace, key.name)
            self._modal.forget(key.namespace, key.name)
            await self._wake_after(key)
            return None
        world = await self._observer.adapter_world(adapter, self._loads.of(adapter.metadata))
        plan = plan_adapter(world)
        known, had_a_version = adapter.status.versions, adapter.status.latest_version is not None
        loads = any(isinstance(action, actions.PutInService | actions.WritePointer) for action in plan.actions)
        if plan.status.versions != known and loads:
            # Before any load, so that a version is not lost if its job is deleted meanwhile.
            adapter = await self._note_versions(adapter, plan.status)
            await self._recorder.record(ADAPTER_KIND, adapter.metadata, plan.news)
        if plan.actions:
            outcome = await self._applier.for_adapter(adapter, plan.actions)
            # The status describes the state after acting, not the intention.
            again = await self._read.adapter_object(key.namespace, key.name)
            if again is None or again.metadata.deletion_timestamp is not None:
                return 0.0
            adapter = again
            pods = frozenset(pod.uid for pod in world.pods)
            self._loads.note(world.adapter.metadata, pods, outcome.loads, datetime.now(UTC))
            plan = plan_adapter(await self._observer.adapter_world(adapter, self._loads.of(adapter.metadata)))
        before = adapter.status
        await self._status.write(ADAPTERS, adapter.metadata, before, plan.status)
        log_transitions(key, adapter_transition(before, plan.status))
        news = plan.news if plan.status.versions != before.versions else ()
        await self._recorder.record(ADAPTER_KIND, adapter.metadata, (*news, *plan.notes))
        if plan.status.versions != known or before.served_version != plan.status.served_version:
            # Jobs that wait for their turn do not depend on the version, and may be many.
            self._wake_jobs(key, queued=False)
        if not had_a_version and plan.status.latest_version is not None:
            self.queue.wake(key)  # Its trainer is let go once the first version stands in status.
        if plan.status.versions != known:
            # The Lease is kept for a job until the adapter knows its version.
            self.queue.wake(Key(Kind.LEASE, key.namespace, self.step_leases.name(adapter)))
        return plan.requeue_seconds

    async def _note_versions(self, adapter: AdapterObject, planned: LoraAdapterStatus) -> AdapterObject:
        """Write only the adapter's versions, and their engine, into its status; returns the updated adapter."""
        versions = {
            "versions": planned.versions,
            "latest_version": planned.latest_version,
            "engine": planned.engine,
        }
        status = adapter.status.model_copy(update=versions)
        metadata = await self._status.write(ADAPTERS, adapter.metadata, adapter.status, status)
        return adapter.model_copy(update={"metadata": metadata, "status": status})

    async def _job(self, key: Key) -> float | None:
        job = await self._read.known_job(key.namespace, key.name)
        if job is None:
            self._told.pop(key, None)
            return None
        if job.metadata.deletion_timestamp is not None:
            return None
        world = replace(await self._observer.job_world(job), told=self._told.get(key))
        plan = plan_job(world)
        self.leases.making.add(job.metadata.uid)
        try:
            await self._applier.for_job(job, world.adapter, plan.creations)
        except Conflict:
            raise
        except ApiError as error:
            return await self._stand_back(key, job, plan.status, error)
        finally:
            self.leases.making.discard(job.metadata.uid)
        # The result is written before any action that would delete its source.
        metadata = await self._status.write(DISTILL_JOBS, job.metadata, job.status, plan.status)
        before, written = known_job(job), job.model_copy(update={"metadata": metadata, "status": plan.status})
        after = before
        if metadata is not job.metadata:
            after = self.jobs.note(written)
            self._told[key] = world.now
        if finished(plan.status.conditions):
            self._told.pop(key, None)
        log_transitions(key, job_transition(job.status, plan.status))
        await self._recorder.record(JOB_KIND, job.metadata, plan.notes)
        try:
            await self._applier.for_job(job.model_copy(update={"metadata": metadata}), world.adapter, plan.remaining)
        except Conflict:
            raise
        except ApiError as error:
            if world.attempt.state is not TrainerState.ABSENT or plan.status.produced_version is not None:
                raise
            return await self._stand_back(key, written, plan.status, error)
        adapter = Key(Kind.ADAPTER, key.namespace, job.spec.adapter_ref.name)
        published = plan.status.produced_version != job.status.produced_version
        ended = finished(plan.status.conditions) and not finished(job.status.conditions)
        # The job's pass was the first to see it: no event tells that somebody put vLLM to sleep.
        not_ready = plan.status.reason == JobReason.ADAPTER_NOT_READY and plan.status.reason != job.status.reason
        if published or not_ready or (ended and plan.status.produced_version is None):
            self.queue.wake(adapter)
        elif plan.creations:
            # A step that has ended by then is not shown in the adapter's status.
            self.queue.wake(adapter, TELL_ADAPTER_SECONDS)
        gave_way = before.queued and not after.queued and not published
        if world.adapter is not None:
            lease = Key(Kind.LEASE, key.namespace, self.step_leases.name(world.adapter))
            log_transitions(lease, *lease_transitions(world.lease, plan.actions))
            if gave_way and (world.lease is None or world.lease.grant is None):
                # If the lease is held, its release wakes them.
                await self.leases.wake_next(world.lease or self.step_leases.new(world.adapter))
            self._wake_lease(lease, plan.actions, at_once=ended or gave_way)
        return plan.requeue_seconds

    async def _stand_back(self, key: Key, job: JobObject, planned: DistillJobStatus, error: ApiError) -> float:
        """The API server refuses to start the job's step: write that to its status, and let other jobs go first
        during the back-off. `job` is the job in the cluster, `planned` the status that was planned."""
        now = datetime.now(UTC)
        begun = {"start_time": planned.start_time, "timings": planned.timings}
        status = refused_step(job.status.model_copy(update=begun), job.metadata.generation, error, now)
        metadata = await self._status.write(DISTILL_JOBS, job.metadata, job.status, status)
        self.jobs.note(job.model_copy(update={"metadata": metadata, "status": status}))
        log_transitions(key, job_transition(job.status, status))
        assert status.retry_time is not None
        return (status.retry_time - now).total_seconds()

    def _wake_lease(self, key: Key, done: tuple[actions.Action, ...], *, at_once: bool) -> None:
        """Wake the Lease of a job after its pass: `at_once` where the job may need it no longer."""
        begun = (actions.CreateAttempt, actions.RetireAttempt)
        if at_once or not all(isinstance(action, (*begun, actions.WriteLease)) for action in done):
            self.queue.wake(key)
        elif not all(isinstance(action, begun) for action in done):
            self.queue.wake(key, WATCH_SECONDS)

    def _wake_jobs(self, adapter: Key, *, queued: bool) -> None:
        for job in self.jobs.of_adapters(adapter.namespace, [adapter.name]):
            if not job.finished and (queued or job.phase is not JobPhase.QUEUED):
                self.queue.wake(Key(Kind.JOB, job.namespace, job.name))

    async def _wake_after(self, adapter: Key) -> None:
        """An adapter was deleted: wake its jobs, which wait or fail, and the Lease, whose pass takes it out of
        service."""
        self._wake_jobs(adapter, queued=True)
        for lease in await self._read.leases(adapter.namespace):
            if lease.adapter not in (None, adapter.name):
                continue
            self.queue.wake(Key(Kind.LEASE, lease.namespace, lease.name))
