"""Observes the API server and the pods into one frozen value, from which a plan decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from claas_contract.engine_refusals import engine_refusals
from claas_crds.v1alpha1.step import JobPhase
from claas_kube.objects.resources import AdapterObject, JobObject
from claas_operator.clients import servers
from claas_operator.clients.companion_source import CompanionSource
from claas_operator.clients.job_view import JobView, known_job
from claas_operator.clients.modal.apps import ModalApps
from claas_operator.clients.proxies import Proxies
from claas_operator.clients.reader import Reader
from claas_operator.clients.recent import RECENT_SECONDS, Recent
from claas_operator.clients.steps_elsewhere import StepsElsewhere
from claas_operator.observe.attempt_reader import observe_attempt
from claas_operator.observe.attempts import alive_trainers, held_open
from claas_operator.observe.holder import running_job
from claas_operator.observe.lease_worlds import LeaseObserver
from claas_operator.observe.places import PlacesObserver
from claas_operator.observe.rollout import unsettled
from claas_operator.observe.samples import SamplesObserver
from claas_operator.observe.secrets import secrets_seen
from claas_operator.observe.serving_pods import (
    handover_of,
    recorded_pods,
    reported,
    serving_pods,
)
from claas_operator.plan import naming
from claas_operator.plan.adapter.adoption import adoption_name
from claas_operator.plan.engine.choice import computes_elsewhere, engine_of, needs_of
from claas_operator.plan.engine.leases import StepLeases
from claas_operator.plan.lineage.history import reported_rejections, reported_versions
from claas_operator.plan.lineage.lineage import Lineage, lineage_for_jobs
from claas_operator.plan.modal.pointer import server_of as modal_server_of
from claas_operator.plan.modal.state import ModalState
from claas_operator.plan.queueing import finished, jobs_ahead, queue_key
from claas_operator.plan.server.handover_choice import HandoverChoice, choose_handover, server_of
from claas_operator.plan.server.load_failures import LoadFailure
from claas_operator.plan.server.unready import no_pod_because
from claas_operator.plan.serving_lease import ServingLease
from claas_operator.plan.world import (
    AdapterWorld,
    JobWorld,
    TrainerJob,
    TrainerState,
)


class Observer:
    """Observes the world of one object at a time."""

    def __init__(
        self,
        read: Reader,
        jobs: JobView,
        companion: CompanionSource,
        proxies: Proxies,
        leases: StepLeases,
        steps: StepsElsewhere,
        modal: ModalApps,
    ) -> None:
        self._read = read
        self._modal = modal
        self._jobs = jobs
        self._samples = SamplesObserver(read)
        self._companion = companion
        self._companions: Recent[bool] = Recent(RECENT_SECONDS)
        self._proxies = proxies
        self._leases = leases
        self.places = PlacesObserver(read, jobs, leases, steps)
        self.leases = LeaseObserver(read, jobs, leases, modal)
        self._engine = leases.engine

    async def adapter_world(self, adapter: AdapterObject, failures: Mapping[str, LoadFailure]) -> AdapterWorld:
        """The world of a LoraAdapter; `failures` are failed loads, by the pod's UID."""
        namespace = adapter.metadata.namespace
        spec = adapter.spec
        deployment = await self._read.deployment_of(adapter)
        steps_lease = await self._read.lease_named(namespace, self._leases.name(adapter))
        jobs = self._jobs.of_adapters(namespace, [adapter.metadata.name])
        pods = await serving_pods(self._read, adapter, deployment, failures, ask=True)
        said = reported(pods)
        sharing = await self._read.adapters_of(namespace, adapter.deployment_name)
        engine = engine_of(adapter, self._engine)
        modal_server = modal_server_of(adapter, engine)
        modal = self._modal.state(adapter.metadata) if modal_server is not None else None
        namesake = _name_taken_by(adapter, await self._read.namesakes(adapter))
        return AdapterWorld(
            now=datetime.now(UTC),
            adapter=adapter,
            claim_found=await self._read.claim_found(namespace, spec.storage.claim_name),
            secrets=await secrets_seen(self._read.credentials, adapter, self._engine),
            deployment_found=deployment is not None,
            wanted_replicas=deployment.spec.replicas if deployment else int(adapter.outside_cluster),
            no_pod=no_pod_because(adapter.deployment_name, deployment, [(pod.name, pod.trouble) for pod in pods]),
            pods=pods,
            init=await self._attempt(namespace, naming.init_name(adapter.metadata)),
            lease=await self._read.lease(namespace, adapter.deployment_name),
            steps_lease=steps_lease,
            products=reported_versions(jobs, adapter),
            rejected=reported_rejections(jobs, adapter),
            running_job=running_job(adapter, steps_lease, jobs),
            recovery=await self._adoption(adapter, steps_lease),
            name_taken_by=namesake or await self._pointed_by(adapter, modal),
            modal_server=modal_server,
            modal=modal,
            served=await self._read.served_name(namespace, adapter.deployment_name, adapter.served_name),
            adapters_here=len(sharing),
            engine=engine.name,
            refusals=tuple(engine_refusals(engine, spec.training, spec.lora, spec.serving)),
            proxy=await self._proxies.state(adapter, deployment),
            companion_current=await self._companion_current(namespace),
            handover=choose_handover(adapter, needs_of(adapter, self._engine), deployment, said),
            server=server_of(adapter, deployment, said),
            containers=(
                tuple(each.name for each in deployment.spec.template.spec.containers) if deployment else None
            ),
        )

    async def _pointed_by(self, adapter: AdapterObject, modal: ModalState | None) -> str | None:
        """An adapter of any namespace that has the served name's pointer on Modal: a Volume knows no namespaces."""
        pointer = modal.pointer if modal is not None else None
        if pointer is None or pointer.adapter_uid == adapter.metadata.uid:
            return None
        for other in await self._read.adapters_everywhere():
            if other.metadata.uid == pointer.adapter_uid and other.outside_cluster:
                return f"{other.metadata.namespace}/{other.metadata.name}"
        return None

    async def job_world(self, job: JobObject, released: ServingLease | None = None) -> JobWorld:
        """The world of a DistillJob; `released`: the lease of its adapter's steps as it will be, given free by its
        holder."""
        if finished(job.status.conditions):
            return await self._finished_world(job)
        namespace = job.metadata.namespace
        adapter = await self._read.adapter_object(namespace, job.spec.adapter_ref.name)
        name = naming.attempt_name(job.metadata, job.status.failed_attempts + 1)
        attempt = await self._attempt(namespace, name)
        attempt = await self._with_progress(namespace, attempt)
        trainers = await self._read.trainer_pods(namespace, job.metadata.uid)
        deployment = await self._read.deployment_of(adapter) if adapter else None
        lease = released or (await self._lease_of(job, adapter) if adapter is not None else None)
        places = (
            await self.places.of(adapter, job.metadata.creation_timestamp, lease) if adapter is not None else None
        )
        mine = lease is not None and lease.held_by(job.metadata.uid)
        status = job.status
        waited = status.phase in (JobPhase.PENDING, JobPhase.SUSPENDED)
        to_start = mine and attempt.state is TrainerState.ABSENT
        between_attempts = to_start and (status.failed_attempts > 0 or waited)
        free = lease is None or lease.holder is None
        known = self._jobs.get(namespace, job.metadata.name)
        samples = await self._samples.look(job, known.inline if known is not None else None)
        waits = not (job.spec.suspend or job.status.produced_version is not None)
        ahead = 0 if mine or adapter is None else await self._jobs_ahead(job, adapter, lease)
        its_turn = free and ahead == 0 and (places is None or places.free)
        ask = waits and (its_turn or between_attempts)
        pods = await serving_pods(self._read, adapter, deployment, {}, ask=ask) if adapter else ()
        now = datetime.now(UTC)
        return JobWorld(
            now=now,
            job=job,
            adapter=adapter,
            samples_error=samples.missing,
            input_error=samples.too_large or self._refused_settings(job, adapter),
            sample_fault=samples.invalid,
            jobs_ahead=ahead,
            lineage=(
                lineage_for_jobs(adapter, self._jobs.of_adapters(namespace, [adapter.metadata.name]))
                if adapter
                else Lineage.of(())
            ),
            wanted_replicas=deployment.spec.replicas if deployment else 0,
            unsettled=(
                unsettled(deployment, await self._read.pods_of(namespace, deployment), now)
                if deployment and ask and places is None
                else None
            ),
            lease=lease,
            places=places,
            attempt=attempt,
            recovery=await self._recovery(job),
            attempts_alive=bool(alive_trainers(trainers)),
            pods=pods,
            recorded=await recorded_pods(self._read, lease) if lease is not None and between_attempts else (),
            handover=handover_of(adapter, self._engine, deployment, pods, asked=ask),
            held_open=held_open(trainers),
        )

    async def _lease_of(self, job: JobObject, adapter: AdapterObject) -> ServingLease | None:
        """The lease of the adapter's steps. A job whose step is under way keeps the one that it holds, though the
        adapter's engine was changed since: nobody else would account for the step, and the lease be held for ever."""
        namespace, needed = adapter.metadata.namespace, self._leases.name(adapter)
        lease = await self._read.lease_named(namespace, needed)
        if lease is not None and lease.held_by(job.metadata.uid):
            return lease
        other = await self._read.lease_named(namespace, self._leases.other_name(adapter))
        return other if other is not None and other.held_by(job.metadata.uid) else lease

    async def _finished_world(self, job: JobObject) -> JobWorld:
        """The world of a finished job: only its remaining trainers."""
        namespace = job.metadata.namespace
        trainers = await self._read.trainer_pods(namespace, job.metadata.uid)
        return JobWorld(
            now=datetime.now(UTC),
            job=job,
            adapter=None,
            samples_error=None,
            input_error=None,
            jobs_ahead=0,
            lease=None,
            lineage=Lineage.of(()),
            wanted_replicas=0,
            unsettled=None,
            attempt=await self._attempt(namespace, job.status.trainer_job),
            recovery=await self._attempt(namespace, None),
            attempts_alive=bool(alive_trainers(trainers)),
            pods=(),
            recorded=(),
            handover=HandoverChoice(None, "the job is done"),
            held_open=held_open(trainers),
        )

    async def _companion_current(self, namespace: str) -> bool:
        async def ask() -> bool:
            return self._companion.is_current(await self._read.config_map(namespace, naming.COMPANION_CONFIG_MAP))

        return await self._companions.get(namespace, ask, keep=bool)

    async def _recovery(self, job: JobObject) -> TrainerJob:
        """The recovery pod of the job's attempt, if one was created."""
        since = job.status.recovery_time
        if since is None:
            return await self._attempt(job.metadata.namespace, None)
        name = naming.recovery_name(job.metadata, job.status.failed_attempts + 1, since)
        return await self._attempt(job.metadata.namespace, name)

    async def _adoption(self, adapter: AdapterObject, lease: ServingLease | None) -> TrainerJob:
        """The recovery pod for a deleted job, if there is such a job."""
        namespace = adapter.metadata.namespace
        found = lease.unaccounted_of(adapter.metadata.uid) if lease is not None else None
        if found is None:
            return await self._attempt(namespace, None)
        uid, job = found
        return await self._attempt(namespace, adoption_name(namespace, job.job_name, uid, job.attempt))

    def _refused_settings(self, job: JobObject, adapter: AdapterObject | None) -> str | None:
        """Which of the job's own settings the engine can't follow. With those of the adapter it waits."""
        if adapter is None or not computes_elsewhere(adapter, self._engine):
            return None
        engine, spec = engine_of(adapter, self._engine), adapter.spec
        known = engine_refusals(engine, spec.training, spec.lora)
        merged = engine_refusals(engine, job.spec.training.over(spec.training), spec.lora)
        return "; ".join(f"spec.{said}" for said in merged if said not in known) or None

    async def _jobs_ahead(self, job: JobObject, adapter: AdapterObject, lease: ServingLease | None) -> int:
        namespace = job.metadata.namespace
        sharing = [other.metadata.name for other in await self.leases.sharing(lease or self._leases.new(adapter))]
        waiting = [
            other
            for other in self._jobs.of_adapters(namespace, sharing)
            if other.queued and other.uid != job.metadata.uid and not (lease is not None and lease.held_by(other.uid))
        ]
        mine = self._jobs.get(namespace, job.metadata.name) or known_job(job)
        return jobs_ahead(mine, waiting, lease.last_turn if lease is not None else None)

    async def _attempt(self, namespace: str, name: str | None) -> TrainerJob:
        return await observe_attempt(self._read, namespace, name, datetime.now(UTC))

    async def _with_progress(self, namespace: str, attempt: TrainerJob) -> TrainerJob:
        """The attempt, with its progress while it runs."""
        if attempt.state is not TrainerState.RUNNING or attempt.pod is None:
            return attempt
        pod = await self._read.pod(namespace, attempt.pod.name)
        if pod is None or not pod.status.pod_ip:
            return attempt
        return replace(attempt, progress=await servers.ask_progress(pod.status.pod_ip))


def _name_taken_by(adapter: AdapterObject, namesakes: Sequence[AdapterObject]) -> str | None:
    """An older adapter with the same served name."""
    mine = queue_key(adapter.metadata.creation_timestamp, adapter.metadata.name)
    return next(
        (
            other.metadata.name
            for other in namesakes
            if queue_key(other.metadata.creation_timestamp, other.metadata.name) < mine
        ),
        None,
    )
