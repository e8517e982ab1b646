"""Reading the world: from the API server and the pods into one frozen value. Nothing is written here."""

from __future__ import annotations

import asyncio
import base64
from datetime import UTC, datetime
from typing import cast

from claas_crds.contract import PublishedVersion, VllmPod
from claas_crds.pod import SecretKeyRef
from claas_operator import naming, serving
from claas_operator.api import (
    ADAPTERS,
    BATCH_JOBS,
    CLAIMS,
    CONFIG_MAPS,
    DEPLOYMENTS,
    DISTILL_JOBS,
    LEASES,
    PODS,
    SECRETS,
    Api,
)
from claas_operator.attempts import describe_attempt
from claas_operator.companion import CompanionSource
from claas_operator.core import (
    AdapterObject,
    BatchJob,
    Deployment,
    JobObject,
    Lease,
    Manifest,
    Pod,
)
from claas_operator.grant import SERVING_LEASE_LABELS, ServedRecord, ServingLease, lease_name, read_lease
from claas_operator.mounts import storage_path
from claas_operator.queueing import finished, in_queue, queue_key
from claas_operator.samples import input_error
from claas_operator.serving import Credentials
from claas_operator.world import (
    AdapterWorld,
    Attempt,
    AttemptState,
    JobWorld,
    LeaseWorld,
    Orphan,
    RecordedPod,
    ServingPod,
)


class Observer:
    """Reads the world of one object at a time."""

    def __init__(self, api: Api, companion: CompanionSource) -> None:
        self._api = api
        self._companion = companion

    async def adapter_object(self, namespace: str, name: str) -> AdapterObject | None:
        """The LoraAdapter of that name."""
        found = await self._api.get(ADAPTERS, namespace, name)
        return AdapterObject.model_validate(found) if found else None

    async def job_object(self, namespace: str, name: str) -> JobObject | None:
        """The DistillJob of that name."""
        found = await self._api.get(DISTILL_JOBS, namespace, name)
        return JobObject.model_validate(found) if found else None

    async def jobs(self, namespace: str) -> list[JobObject]:
        """All DistillJobs of a namespace."""
        return [JobObject.model_validate(found) for found in await self._api.list(DISTILL_JOBS, namespace)]

    async def adapters(self, namespace: str) -> list[AdapterObject]:
        """All LoraAdapters of a namespace."""
        return [AdapterObject.model_validate(found) for found in await self._api.list(ADAPTERS, namespace)]

    async def lease(self, namespace: str, deployment: str) -> ServingLease | None:
        """The serving lease of a Deployment."""
        found = await self._api.get(LEASES, namespace, lease_name(deployment))
        return read_lease(Lease.model_validate(found)) if found else None

    async def lease_named(self, namespace: str, name: str) -> ServingLease | None:
        """The serving lease by its own name."""
        found = await self._api.get(LEASES, namespace, name)
        return read_lease(Lease.model_validate(found)) if found else None

    async def leases(self, namespace: str | None) -> list[ServingLease]:
        """All serving leases."""
        found = await self._api.list(LEASES, namespace, SERVING_LEASE_LABELS)
        return [read_lease(Lease.model_validate(lease)) for lease in found]

    async def credentials(
        self, namespace: str, control_token: SecretKeyRef | None, api_key: SecretKeyRef | None
    ) -> Credentials:
        """The contents of the Secrets that open a server; None for what is not named or not there."""
        return Credentials(
            await self._secret_value(namespace, control_token), await self._secret_value(namespace, api_key)
        )

    async def _secret_value(self, namespace: str, reference: SecretKeyRef | None) -> str | None:
        if reference is None:
            return None
        secret = await self._api.get(SECRETS, namespace, reference.name)
        value = cast(dict[str, str], (secret or {}).get("data") or {}).get(reference.key)
        return base64.b64decode(value).decode().strip() if value is not None else None

    async def adapter_world(self, adapter: AdapterObject, load_errors: dict[str, str]) -> AdapterWorld:
        """The world of a LoraAdapter; `load_errors` are those of this pass, by pod."""
        namespace = adapter.metadata.namespace
        spec = adapter.spec
        claim = await self._api.get(CLAIMS, namespace, spec.storage.claim_name)
        deployment = await self._deployment(namespace, spec.serving.deployment_ref.name)
        lease = await self.lease(namespace, spec.serving.deployment_ref.name)
        jobs = [job for job in await self.jobs(namespace) if job.spec.adapter_ref.name == adapter.metadata.name]
        holder = next((job for job in jobs if lease is not None and lease.holder == job.metadata.uid), None)
        return AdapterWorld(
            now=datetime.now(UTC),
            adapter=adapter,
            claim_found=claim is not None,
            missing_secrets=await self._missing_secrets(adapter),
            deployment_found=deployment is not None,
            wanted_replicas=deployment.spec.replicas if deployment else 0,
            pods=await self._serving_pods(adapter, deployment, load_errors, ask=True),
            init=await self._attempt(namespace, naming.init_name(adapter.metadata), ask_progress=False),
            lease=lease,
            products=tuple(_product(job, adapter) for job in jobs if _has_product(job, adapter)),
            running_job=(
                holder.metadata.name
                if holder is not None
                and holder.status.produced_version is None
                and not finished(holder.status.conditions)
                else None
            ),
            companion_current=self._companion.is_current(
                await self._api.get(CONFIG_MAPS, namespace, naming.COMPANION_CONFIG_MAP)
            ),
        )

    async def job_world(self, job: JobObject) -> JobWorld:
        """The world of a DistillJob."""
        namespace = job.metadata.namespace
        adapter = await self.adapter_object(namespace, job.spec.adapter_ref.name)
        attempt_number = job.status.failed_attempts + (0 if finished(job.status.conditions) else 1)
        name = naming.attempt_name(job.metadata, attempt_number)
        attempt = await self._attempt(namespace, job.status.trainer_job if finished(job.status.conditions) else name)
        alive = await self._alive_trainers(namespace, job.metadata.uid)
        deployment_name = adapter.spec.serving.deployment_ref.name if adapter else None
        deployment = await self._deployment(namespace, deployment_name) if deployment_name else None
        lease = await self.lease(namespace, deployment_name) if deployment_name else None
        mine = lease is not None and lease.holder == job.metadata.uid
        between_attempts = mine and attempt.state is AttemptState.ABSENT and job.status.failed_attempts > 0
        free = lease is None or lease.holder is None
        waits = not (finished(job.status.conditions) or job.spec.suspend or job.status.produced_version is not None)
        jobs_ahead = 0 if mine or adapter is None else await self._jobs_ahead(job, adapter)
        return JobWorld(
            now=datetime.now(UTC),
            job=job,
            adapter=adapter,
            samples_error=await self._samples_error(job),
            input_error=input_error(job.spec.samples),
            jobs_ahead=jobs_ahead,
            lease=lease,
            attempt=attempt,
            attempts_alive=bool(alive),
            pods=(
                await self._serving_pods(
                    adapter, deployment, {}, ask=waits and ((free and jobs_ahead == 0) or between_attempts)
                )
                if adapter
                else ()
            ),
            recorded=await self._recorded(lease) if lease is not None and between_attempts else (),
        )

    async def lease_world(self, lease: ServingLease) -> LeaseWorld:
        """The world of a serving lease that is held."""
        grant = lease.grant
        job = await self.job_object(lease.namespace, grant.job_name) if grant else None
        active = (
            grant is not None
            and job is not None
            and job.metadata.uid == grant.job_uid
            and job.metadata.deletion_timestamp is None
            and not finished(job.status.conditions)
            and not (job.spec.suspend and job.status.produced_version is None)
        )
        # The servers first: what sleeps now was not put to sleep by a trainer that is made only later.
        recorded = await self._recorded(lease)
        return LeaseWorld(
            now=datetime.now(UTC),
            lease=lease,
            job_active=active,
            alive_pods=await self._alive_trainers(lease.namespace, grant.job_uid) if grant else (),
            attempts_open=await self._attempts_open(lease.namespace, grant.job_uid) if grant else False,
            pods=recorded,
            deployment_found=await self._deployment(lease.namespace, lease.deployment) is not None,
            orphans=await self._orphans(lease) if grant is None else (),
        )

    async def _orphans(self, lease: ServingLease) -> tuple[Orphan, ...]:
        """Served names whose adapter is gone, on its way out, or served under another name by now."""
        if not lease.served:
            return ()
        wanted = {
            (adapter.metadata.uid, adapter.served_name)
            for adapter in await self.adapters(lease.namespace)
            if adapter.metadata.deletion_timestamp is None
            and adapter.spec.serving.deployment_ref.name == lease.deployment
        }
        orphans = []
        for name, record in lease.served.items():
            if (record.adapter_uid, name) not in wanted:
                orphans.append(Orphan(name, record, await self._orphan_pods(lease, name, record)))
        return tuple(orphans)

    async def _orphan_pods(
        self, lease: ServingLease, served_name: str, record: ServedRecord
    ) -> tuple[ServingPod, ...]:
        deployment = await self._deployment(lease.namespace, lease.deployment)
        pods = await self._pods(lease.namespace, deployment)
        credentials = await self.credentials(lease.namespace, record.control_token, record.api_key)
        return tuple(
            await asyncio.gather(
                *(self._serving_pod(pod, record.port, None, served_name, credentials, None) for pod in pods)
            )
        )

    async def _deployment(self, namespace: str, name: str) -> Deployment | None:
        found = await self._api.get(DEPLOYMENTS, namespace, name)
        return Deployment.model_validate(found) if found else None

    async def _pods(self, namespace: str, deployment: Deployment | None) -> list[Pod]:
        if deployment is None:
            return []
        found = await self._api.list(PODS, namespace, deployment.spec.selector.text)
        pods = [Pod.model_validate(pod) for pod in found]
        alive = [pod for pod in pods if not pod.ended and pod.metadata.deletion_timestamp is None]
        return sorted(alive, key=lambda pod: pod.metadata.name)

    async def _serving_pods(
        self,
        adapter: AdapterObject,
        deployment: Deployment | None,
        load_errors: dict[str, str],
        *,
        ask: bool,
    ) -> tuple[ServingPod, ...]:
        namespace = adapter.metadata.namespace
        spec = adapter.spec.serving
        pods = await self._pods(namespace, deployment)
        credentials = None
        if ask and pods:
            credentials = await self.credentials(namespace, spec.control_token_secret_ref, spec.api_key_secret_ref)
        return tuple(
            await asyncio.gather(
                *(
                    self._serving_pod(
                        pod,
                        spec.port,
                        storage_path(pod, adapter),
                        adapter.served_name,
                        credentials,
                        load_errors.get(pod.metadata.name),
                    )
                    for pod in pods
                )
            )
        )

    async def _serving_pod(
        self,
        pod: Pod,
        port: int,
        folder: str | None,
        served_name: str,
        credentials: Credentials | None,
        load_error: str | None,
    ) -> ServingPod:
        """One pod; its server is asked if it is ready and there are credentials to ask with."""
        address = pod.status.pod_ip
        host = f"[{address}]" if ":" in address else address
        url = f"http://{host}:{port}" if address else None
        server = None
        if credentials is not None and pod.ready and url is not None:
            server = await serving.ask_state(url, served_name, credentials)
        return ServingPod(
            name=pod.metadata.name,
            uid=pod.metadata.uid,
            ready=pod.ready,
            url=url,
            node=pod.spec.node_name,
            storage_path=folder,
            server=server,
            load_error=load_error,
        )

    async def _missing_secrets(self, adapter: AdapterObject) -> tuple[str, ...]:
        spec = adapter.spec
        hub = spec.model.source.hub
        references = [
            spec.serving.control_token_secret_ref,
            spec.serving.api_key_secret_ref,
            hub.token_secret_ref if hub else None,
        ]
        missing = []
        for reference in references:
            if reference is not None and await self._secret_value(adapter.metadata.namespace, reference) is None:
                missing.append(f"{reference.name}/{reference.key}")
        return tuple(missing)

    async def _samples_error(self, job: JobObject) -> str | None:
        source = job.spec.samples
        namespace = job.metadata.namespace
        if source.config_map_ref is not None:
            return await self._missing_key(
                CONFIG_MAPS, namespace, source.config_map_ref.name, source.config_map_ref.key
            )
        if source.secret_ref is not None:
            return await self._missing_key(SECRETS, namespace, source.secret_ref.name, source.secret_ref.key)
        if source.file is not None and await self._api.get(CLAIMS, namespace, source.file.claim_name) is None:
            return f"spec.samples.file.claimName: there is no PersistentVolumeClaim {source.file.claim_name}"
        return None

    async def _missing_key(self, resource: object, namespace: str, name: str, key: str) -> str | None:
        secret = resource is SECRETS
        field, kind = ("secretRef", "Secret") if secret else ("configMapRef", "ConfigMap")
        found = await self._api.get(SECRETS if secret else CONFIG_MAPS, namespace, name)
        if found is None:
            return f"spec.samples.{field}.name: there is no {kind} {name} in namespace {namespace}"
        keys = {*cast(Manifest, found.get("data") or {}), *cast(Manifest, found.get("binaryData") or {})}
        if key not in keys:
            return f"spec.samples.{field}.key: {kind} {name} has no key {key}"
        return None

    async def _jobs_ahead(self, job: JobObject, adapter: AdapterObject) -> int:
        deployment = adapter.spec.serving.deployment_ref.name
        sharing = {
            other.metadata.name
            for other in await self.adapters(job.metadata.namespace)
            if other.spec.serving.deployment_ref.name == deployment
        }
        mine = queue_key(job.metadata.creation_timestamp, job.metadata.name)
        return sum(
            1
            for other in await self.jobs(job.metadata.namespace)
            if other.spec.adapter_ref.name in sharing
            and in_queue(other)
            and queue_key(other.metadata.creation_timestamp, other.metadata.name) < mine
        )

    async def _attempt(self, namespace: str, name: str | None, ask_progress: bool = True) -> Attempt:
        if name is None:
            return Attempt(name="", state=AttemptState.ABSENT, alive=False)
        found = await self._api.get(BATCH_JOBS, namespace, name)
        labels = {"batch.kubernetes.io/job-name": name}
        pods = [Pod.model_validate(pod) for pod in await self._api.list(PODS, namespace, labels)]
        batch_job = BatchJob.model_validate(found) if found else None
        attempt = describe_attempt(name, batch_job, pods)
        if ask_progress and attempt.state is AttemptState.RUNNING:
            address = next((pod.status.pod_ip for pod in pods if pod.metadata.name == attempt.pod), "")
            if address:
                progress = await serving.ask_progress(address)
                return Attempt(
                    name=attempt.name,
                    state=attempt.state,
                    alive=attempt.alive,
                    pod=attempt.pod,
                    message=attempt.message,
                    progress=progress,
                )
        return attempt

    async def _alive_trainers(self, namespace: str, job_uid: str) -> tuple[str, ...]:
        found = await self._api.list(PODS, namespace, {naming.JOB_UID_LABEL: job_uid})
        pods = [Pod.model_validate(pod) for pod in found]
        return tuple(pod.metadata.name for pod in pods if not pod.ended)

    async def _attempts_open(self, namespace: str, job_uid: str) -> bool:
        found = await self._api.list(BATCH_JOBS, namespace, {naming.JOB_UID_LABEL: job_uid})
        return any(not BatchJob.model_validate(job).ended_because for job in found)

    async def _recorded(self, lease: ServingLease) -> tuple[RecordedPod, ...]:
        grant = lease.grant
        if grant is None:
            return ()
        credentials = await self.credentials(lease.namespace, grant.control_token, grant.api_key)
        return tuple(
            await asyncio.gather(*(self._recorded_pod(lease.namespace, target, credentials) for target in grant.pods))
        )

    async def _recorded_pod(self, namespace: str, target: VllmPod, credentials: Credentials) -> RecordedPod:
        found = await self._api.get(PODS, namespace, target.name)
        pod = Pod.model_validate(found) if found else None
        exists = pod is not None and pod.metadata.uid == target.uid and not pod.ended
        server = await serving.ask_state(target.url, None, credentials) if exists else None
        return RecordedPod(target, exists, server)


def _has_product(job: JobObject, adapter: AdapterObject) -> bool:
    """Whether a job reports a version of this adapter, and not of an earlier one of the same name."""
    published, created = job.status.published_time, adapter.metadata.creation_timestamp
    if job.status.produced_version is None:
        return False
    return published is None or created is None or published >= created


def _product(job: JobObject, adapter: AdapterObject) -> PublishedVersion:
    status = job.status
    assert status.produced_version is not None
    path = status.produced_path or f"{adapter.storage_path}/versions/{status.produced_version}"
    return PublishedVersion(
        number=status.produced_version,
        path=path,
        digest=status.produced_digest or "",
        created=status.published_time or status.completion_time or datetime.now(UTC),
        parent=status.parent_version,
        job_name=job.metadata.name,
        job_uid=job.metadata.uid,
        metrics=status.metrics,
    )
