"""Carries out plans: the only module that writes to the cluster or sends commands to servers."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from claas_contract.input import TrainerInput, VllmPod
from claas_contract.jobs import JobIdentity
from claas_contract.outcome import TrainerCommand
from claas_crds.v1alpha1.distill_job import KIND as JOB_KIND
from claas_crds.v1alpha1.lora_adapter import KIND as ADAPTER_KIND
from claas_kube.api import Api, Propagation
from claas_kube.errors import ApiError, Conflict
from claas_kube.objects.resources import AdapterObject, JobObject
from claas_kube.resources import BATCH_JOBS, CONFIG_MAPS, DISTILL_JOBS, LEASES, PODS, SECRETS
from claas_operator.act import manifests
from claas_operator.act.manifests import Owner
from claas_operator.act.pod_volumes import Mount
from claas_operator.act.proxy import ProxyMaker
from claas_operator.act.sample_mounts import samples_mounts
from claas_operator.act.trainer_input import attempt_input, init_input, recovery_input
from claas_operator.clients import servers
from claas_operator.clients.companion_source import CompanionSource
from claas_operator.clients.modal.apps import ModalApps
from claas_operator.clients.reader import Reader
from claas_operator.clients.steps_elsewhere import StepsElsewhere
from claas_operator.errors import NotAppliedError, ServerError
from claas_operator.metrics.counts import Metrics
from claas_operator.metrics.definitions import LoadResult, WakeResult
from claas_operator.plan import actions
from claas_operator.plan.samples import samples_document
from claas_operator.plan.server.load_failures import Load
from claas_operator.plan.serving_lease import Grant, ServedRecord, ServingLease, lease_manifest, served_name_manifest
from claas_operator.plan.world import ServerPod
from claas_operator.settings import Settings

log = logging.getLogger(__name__)


@dataclass
class Outcome:
    """Results of a plan that the next observation can't show."""

    loads: list[Load] = field(default_factory=list)

    def failed(self, pod: ServerPod, version: int, error: ServerError) -> None:
        """A pod failed to load the version."""
        self.loads.append(Load(pod.uid, version, str(error), isinstance(error, NotAppliedError)))


class Applier:
    """Carries out the actions of one object's plan, in order. A failure ends the plan. Raises Conflict if an object
    has changed since it was observed; the next pass decides again.
    """

    def __init__(
        self,
        api: Api,
        read: Reader,
        companion: CompanionSource,
        settings: Settings,
        metrics: Metrics,
        proxies: ProxyMaker,
        steps: StepsElsewhere,
        modal: ModalApps,
    ) -> None:
        self._api = api
        self._read = read
        self._companion = companion
        self._settings = settings
        self._metrics = metrics
        self._proxies = proxies
        self._steps = steps
        self._modal = modal

    async def for_adapter(self, adapter: AdapterObject, plan: tuple[actions.Action, ...]) -> Outcome:
        """Carry out a LoraAdapter's plan."""
        outcome = Outcome()
        namespace = adapter.metadata.namespace
        for action in plan:
            match action:
                case actions.ApplyCompanion():
                    manifest = manifests.companion_config_map(namespace, self._companion.files)
                    await self._api.apply(CONFIG_MAPS, namespace, manifest)
                case actions.CreateProxyToken():
                    await self._proxies.create_token(adapter)
                case actions.ApplyProxy():
                    await self._proxies.apply(adapter)
                case actions.CreateInit(name):
                    await self._create_init(adapter, name)
                case actions.CreateRecovery(name, job):
                    await self._create_recovery(Owner(ADAPTER_KIND, adapter.metadata), adapter, name, job)
                case actions.PutInService(pod, version, path):
                    try:
                        await servers.serve(
                            pod.url or "",
                            await self._credentials(adapter),
                            adapter.served_name,
                            version,
                            path,
                            adapter.spec.serving.probe,
                        )
                    except ServerError as error:
                        outcome.failed(pod, version, error)
                        not_applied = isinstance(error, NotAppliedError)
                        self._metrics.loaded(LoadResult.NOT_APPLIED if not_applied else LoadResult.REFUSED)
                    else:
                        outcome.loads.append(Load(pod.uid, version))
                        self._metrics.loaded(LoadResult.LOADED)
                case actions.VerifyServed(pod, version):
                    await self._verify(adapter, pod, version, outcome)
                case actions.LookAtModal(server, served_name):
                    self._modal.look(adapter.metadata, server, served_name)
                case actions.WritePointer(server, pointer):
                    self._modal.point(adapter.metadata, server, pointer)
                case actions.ConfirmPointer(server, pointer, address):
                    self._modal.confirm(adapter.metadata, server, pointer, address)
                case _:
                    await self._common(namespace, action)
        return outcome

    async def for_job(self, job: JobObject, adapter: AdapterObject | None, plan: tuple[actions.Action, ...]) -> None:
        """Carry out a DistillJob's plan."""
        namespace = job.metadata.namespace
        for action in plan:
            match action:
                case actions.CreateAttempt(name, grant, parent):
                    assert adapter is not None
                    await self._create_attempt(job, adapter, name, grant, parent)
                case actions.CreateRecovery(name, identity):
                    assert adapter is not None
                    await self._create_recovery(Owner(JOB_KIND, job.metadata), adapter, name, identity)
                case actions.DeleteJob():
                    await self._api.delete(
                        DISTILL_JOBS,
                        namespace,
                        job.metadata.name,
                        uid=job.metadata.uid,
                        # Its time to live may have been extended meanwhile.
                        resource_version=job.metadata.resource_version,
                    )
                case _:
                    await self._common(namespace, action)

    async def for_lease(self, namespace: str, plan: tuple[actions.Action, ...]) -> None:
        """Carry out a serving lease's plan."""
        for action in plan:
            await self._common(namespace, action)

    async def _common(self, namespace: str, action: actions.Action) -> None:
        match action:
            case actions.WriteLease(lease):
                await self._write_lease(lease)
            case actions.WriteServedName(served):
                manifest = served_name_manifest(served)
                if served.resource_version is None:
                    await self._api.create(LEASES, namespace, manifest)
                else:
                    await self._api.replace(LEASES, namespace, served.name, manifest)
            case actions.ForgetServedName(served):
                await self._api.delete(
                    LEASES, namespace, served.name, uid=served.uid, resource_version=served.resource_version
                )
                self._modal.forget_removal(served)
            case actions.RemovePointer(served):
                self._modal.remove(served)
            case actions.DeleteLease(lease):
                await self._api.delete(
                    LEASES, namespace, lease.name, uid=lease.uid, resource_version=lease.resource_version
                )
            case actions.TakeOutOfService(url, served_name, record):
                await self._take_out(namespace, url, served_name, record)
            case actions.WakePods(lease, pods):
                await self._wake(namespace, lease.grant, pods)
            case actions.KillTrainer(pod):
                # With a grace period of 0 the object would vanish before the process; with 1 s the node confirms its
                # end.
                await self._api.delete(PODS, namespace, pod.name, uid=pod.uid, grace_seconds=1)
            case actions.DeleteAttempt(name, uid, pod, grace_seconds, why):
                log.info("ending %s/%s: %s", namespace, name, why)
                if pod is not None:
                    await self._api.delete(PODS, namespace, pod.name, uid=pod.uid, grace_seconds=grace_seconds)
                if uid is not None:
                    await self._api.delete(BATCH_JOBS, namespace, name, uid=uid, propagation=Propagation.BACKGROUND)
                await self._delete_input(namespace, name)
            case actions.RetireAttempt(name, keep_seconds):
                await self._delete_input(namespace, name)
                await self._remove_later(namespace, name, keep_seconds)
            case _:
                raise AssertionError(f"{type(action).__name__} is not an action of this kind of object")

    async def _remove_later(self, namespace: str, name: str, keep_seconds: int) -> None:
        try:
            await self._api.merge(BATCH_JOBS, namespace, name, {"spec": {"ttlSecondsAfterFinished": keep_seconds}})
        except ApiError as error:
            if error.status != 404:
                raise

    async def _verify(self, adapter: AdapterObject, pod: ServerPod, version: int, outcome: Outcome) -> None:
        where = f"{adapter.served_name} in pod {adapter.metadata.namespace}/{pod.name}"
        credentials = await self._credentials(adapter)
        try:
            if await servers.verify(pod.url or "", credentials, adapter.served_name, adapter.spec.serving.probe):
                log.warning("%s was answered by the base model: its version is loaded again", where)
            outcome.loads.append(Load(pod.uid, version))
        except NotAppliedError as error:
            outcome.failed(pod, version, error)
        except ServerError as error:
            # The result is unknown; the next pass retries.
            log.warning("%s could not be verified: %s", where, error)

    async def _credentials(self, adapter: AdapterObject) -> servers.Credentials:
        spec = adapter.spec.serving
        return await self._read.credentials.of(
            adapter.metadata.namespace, adapter.control_token, spec.api_key_secret_ref, spec.tls
        )

    async def _write_lease(self, lease: ServingLease) -> None:
        manifest = lease_manifest(lease)
        async with self._steps.place_for(lease):
            if lease.resource_version is None:
                await self._api.create(LEASES, lease.namespace, manifest)
            else:
                await self._api.replace(LEASES, lease.namespace, lease.name, manifest)

    async def _delete_input(self, namespace: str, name: str) -> None:
        uid = await self._read.input_uid(namespace, name)
        if uid is not None:
            await self._api.delete(SECRETS, namespace, name, uid=uid)

    async def _take_out(self, namespace: str, url: str, served_name: str, record: ServedRecord) -> None:
        credentials = await self._read.credentials.of(namespace, record.control_token, record.api_key, record.tls)
        try:
            await servers.forget(url, credentials, served_name)
            log.info("took %s out of service at %s: LoraAdapter %s is gone", served_name, url, record.adapter_name)
        except ServerError as error:
            log.warning("%s could not be taken out of service: %s", served_name, error)

    async def _wake(self, namespace: str, grant: Grant | None, pods: tuple[VllmPod, ...]) -> None:
        assert grant is not None
        credentials = await self._read.credentials.of(namespace, grant.control_token, grant.api_key, grant.tls)
        for pod in pods:
            try:
                await servers.wake(pod.url, credentials)
                log.info("woke pod %s/%s after %s", namespace, pod.name, grant.names)
                self._metrics.woke(WakeResult.WOKEN)
            except ServerError as error:
                self._metrics.woke(WakeResult.FAILED)
                log.warning("pod %s/%s could not be woken: %s", namespace, pod.name, error)

    async def _create_init(self, adapter: AdapterObject, name: str) -> None:
        document = init_input(adapter, self._settings)
        owner = Owner(ADAPTER_KIND, adapter.metadata)
        mounts = manifests.common_mounts(adapter, self._settings, name)
        await self._create_trainer(TrainerCommand.INIT, name, owner, adapter, document, None, mounts)

    async def _create_recovery(self, owner: Owner, adapter: AdapterObject, name: str, job: JobIdentity) -> None:
        document = recovery_input(adapter, self._settings, job)
        mounts = manifests.storage_mounts(adapter, name)
        await self._create_trainer(TrainerCommand.RECOVER, name, owner, adapter, document, None, mounts)

    async def _create_attempt(
        self, job: JobObject, adapter: AdapterObject, name: str, grant: Grant, parent: int
    ) -> None:
        # The one time that a job's samples are read.
        whole = await self._read.job_object(job.metadata.namespace, job.metadata.name)
        # An attempt is made before status is written: nothing else would see that the job was suspended just now.
        known, now = job.metadata, whole.metadata if whole is not None else None
        same = now is not None and (now.uid, now.generation) == (known.uid, known.generation)
        if whole is None or not same or whole.metadata.deletion_timestamp is not None:
            await self._api.outdated(DISTILL_JOBS, known.namespace, known.name)
            raise Conflict(409, f"DistillJob {known.name}", "it was changed, is being deleted, or is gone")
        document = attempt_input(adapter, self._settings, whole, grant, parent)
        mounts = [
            *manifests.common_mounts(adapter, self._settings, name),
            *manifests.serving_mounts(adapter),
            *samples_mounts(whole.spec.samples),
        ]
        owner = Owner(JOB_KIND, job.metadata)
        samples = samples_document(whole.spec.samples)
        await self._create_trainer(TrainerCommand.RUN, name, owner, adapter, document, samples, mounts)

    async def _create_trainer(
        self,
        command: TrainerCommand,
        name: str,
        owner: Owner,
        adapter: AdapterObject,
        document: TrainerInput,
        samples: str | None,
        mounts: list[Mount],
    ) -> None:
        """Create the input, then the batch Job; both may exist already, from before a restart of the operator."""
        namespace = adapter.metadata.namespace
        deployment = await self._read.deployment_of(adapter)
        selector = deployment.spec.selector if deployment else None
        metadata = manifests.child_metadata(name, owner, adapter.metadata, command)
        await self._api.apply(SECRETS, namespace, manifests.input_secret(metadata, document, samples))
        job = manifests.trainer_job(command, metadata, adapter, self._settings, mounts, selector)
        try:
            await self._api.create(BATCH_JOBS, namespace, job)
        except Conflict:
            log.info("adopted trainer %s/%s", namespace, name)
