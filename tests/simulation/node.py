"""Job controller, kubelet and garbage collector: batch Jobs of the operator become pods that run a script."""

from __future__ import annotations

import asyncio
import base64
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from claas_contract.input import TrainerInput
from claas_crds.samples.documents import read_document
from claas_crds.v1alpha1.training import DistillBatchItem
from claas_kube.objects.meta import Manifest
from claas_kube.resources import BATCH_JOBS, EVENTS, PODS, SECRETS
from claas_operator.plan.naming import JOB_UID_LABEL
from claas_operator.plan.samples import SAMPLES_FILE_NAME
from tests.simulation import statuses
from tests.simulation.cluster_api import METADATA_ONLY, ClusterApi, RequestRefusedError, text
from tests.simulation.cluster_api import field as at
from tests.simulation.trainer import KILLED, End, Script, Trainer
from tests.simulation.vllm_pod import CONTROL_TOKEN
from tests.simulation.volume import Volume

OURS = "app.kubernetes.io/managed-by=claas-operator"
CONTAINER = "trainer"
SIDECAR = "proxy"

ScriptFor = Callable[[str, TrainerInput], Script]
"""The script of an attempt, by its namespace and input."""


@dataclass
class Run:
    """One trainer pod, from its start to its end (times by the monotonic clock)."""

    namespace: str
    pod: str
    document: TrainerInput
    served_by: frozenset[str]
    """Names of the vLLM pods it deals with."""
    began: float
    ended: float | None = None
    exit_code: int | None = None

    @property
    def job(self) -> str | None:
        """The DistillJob that a step is taken for; None for the initial version, and for one that is looked for."""
        taken = next(iter(self.document.jobs), None) if self.document.parent is not None else None
        return taken.name if taken else None


@dataclass
class _Attempt:
    """One trainer pod while it is there."""

    name: str
    namespace: str
    trainer: Trainer
    run: Run
    started: str
    address: str
    grace_seconds: float = 30.0
    """What its pod is given to end, once it is being deleted."""
    deleting: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when its pod is gone."""


@dataclass
class Node:
    """The played node. `script_for` says what each attempt does; `runs` are all trainer pods there were."""

    api: ClusterApi
    volume: Volume
    script_for: ScriptFor
    runs: list[Run] = field(default_factory=list)
    _job_gone: dict[str, asyncio.Event] = field(default_factory=dict)
    """Set when a batch Job is gone, by its UID."""
    _attempts: dict[tuple[str, str], _Attempt] = field(default_factory=dict)
    """Those whose trainers run, by their pods' namespaces and names."""
    _addresses: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    async def work(self) -> None:
        """Follow the cluster until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch_pods())
            async for change, job in self.api.watch(BATCH_JOBS, OURS):
                uid = text(job, "metadata", "uid")
                if change == "DELETED":
                    self._job_gone.pop(uid).set()
                elif uid not in self._job_gone:
                    self._job_gone[uid] = asyncio.Event()
                    tasks.create_task(self._play(job, self._job_gone[uid]))

    def leave_alone(self, job_uid: str) -> None:
        """Start nothing for a batch Job whose pod was made elsewhere."""
        self._job_gone[job_uid] = asyncio.Event()

    async def collect_garbage(self, namespace: str, owner_uid: str) -> None:
        """Delete what belonged to an object that is gone, as the garbage collector would."""
        for resource in (BATCH_JOBS, SECRETS):
            for found in await self.api.list(resource, namespace, OURS, metadata_only=True):
                if text(found, "metadata", "ownerReferences", 0, "uid") == owner_uid:
                    await self.api.delete(resource, namespace, text(found, "metadata", "name"))

    async def _watch_pods(self) -> None:
        async for change, pod in self.api.watch(PODS, OURS, accept=METADATA_ONLY):
            namespace, name = text(pod, "metadata", "namespace"), text(pod, "metadata", "name")
            attempt = self._attempts.get((namespace, name))
            if change == "DELETED":
                if attempt is not None:
                    attempt.gone.set()
            elif at(pod, "metadata", "deletionTimestamp") is not None:
                if attempt is None:
                    # Its trainer ended while the deletion was on its way here.
                    await self.api.delete(PODS, namespace, name, grace_seconds=0)
                else:
                    grace = at(pod, "metadata", "deletionGracePeriodSeconds")
                    attempt.grace_seconds = grace if isinstance(grace, int) else attempt.grace_seconds
                    attempt.deleting.set()

    async def _play(self, job: Manifest, job_gone: asyncio.Event) -> None:
        """Be kubelet and controllers to one batch Job, from its pod's start until its trainer has ended."""
        attempt = await self._start(job)
        if attempt is None:
            return
        place = (attempt.namespace, attempt.run.pod)
        work = asyncio.create_task(attempt.trainer.run(), name=attempt.run.pod)
        waits = [asyncio.create_task(each.wait()) for each in (job_gone, attempt.deleting, attempt.gone)]
        unowned, deleting, gone = waits
        try:
            await asyncio.wait((work, *waits), return_when=asyncio.FIRST_COMPLETED)
            if unowned.done() and not (work.done() or deleting.done()):
                # The garbage collector deletes the pods of a Job that is gone.
                await self.api.delete(PODS, *place)
                await asyncio.wait((work, deleting), return_when=asyncio.FIRST_COMPLETED)
            if deleting.done() and not work.done():
                attempt.trainer.told.set()
                await asyncio.wait((work, gone), timeout=attempt.grace_seconds, return_when=asyncio.FIRST_COMPLETED)
            assert work.done() or deleting.done(), f"pod {attempt.run.pod} is gone while its trainer runs"
            end = work.result() if work.done() else End(KILLED)
        finally:
            for task in (work, *waits):
                task.cancel()
            await asyncio.gather(work, *waits, return_exceptions=True)
        del self._attempts[place]
        held_open = await self._report(attempt, end, attempt.deleting.is_set())
        if held_open:
            await job_gone.wait()
            await self.api.delete(PODS, *place, grace_seconds=0)

    async def _start(self, job: Manifest) -> _Attempt | None:
        """Make the pod of a batch Job; None when there will be none."""
        namespace, name = text(job, "metadata", "namespace"), text(job, "metadata", "name")
        uid = text(job, "metadata", "uid")
        document = await self._input(namespace, name)
        if document is None:
            return None
        script = self.script_for(namespace, document)
        if script.refused:
            await self._refuse(job, script.refused)
            return None
        pod = f"{name}-{uid[:5]}"
        template = at(job, "spec", "template")
        assert isinstance(template, dict)
        labels = at(template, "metadata", "labels")
        assert isinstance(labels, dict)
        spec = at(template, "spec")
        assert isinstance(spec, dict)
        owner: Manifest = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid, "controller": True}
        manifest: Manifest = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": pod,
                "labels": {**labels, "batch.kubernetes.io/job-name": name, "batch.kubernetes.io/controller-uid": uid},
                "annotations": at(template, "metadata", "annotations"),
                "ownerReferences": [owner],
            },
            "spec": {**spec, "nodeName": "simulated"},
        }
        number = next(self._addresses)
        address = f"127.201.{number // 250}.{number % 250 + 1}"
        token = CONTROL_TOKEN if document.serving is not None and document.serving.has_control_token else None
        samples = await self._samples(namespace, name, spec) if document.samples_file is not None else []
        trainer = Trainer(namespace, document, script, self.volume, token, samples)
        served_by = frozenset(pod.name for pod in document.serving.pods) if document.serving else frozenset()
        run = Run(namespace, pod, document, served_by, time.monotonic())
        started = statuses.now()
        attempt = _Attempt(name, namespace, trainer, run, started, address)
        self._attempts[namespace, pod] = attempt
        await self.api.create(PODS, namespace, manifest)
        await self.api.merge(PODS, namespace, pod, {"status": statuses.running_pod(address, CONTAINER)}, "status")
        await self.api.merge(BATCH_JOBS, namespace, name, {"status": statuses.active_job(started)}, "status")
        self.runs.append(run)
        return attempt

    async def _refuse(self, job: Manifest, words: str) -> None:
        """Say in an Event that the Job controller could not make the pod."""
        name, namespace = text(job, "metadata", "name"), text(job, "metadata", "namespace")
        about: Manifest = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "namespace": namespace}
        event: Manifest = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{name}."},
            "involvedObject": {**about, "uid": text(job, "metadata", "uid")},
            "type": "Warning",
            "reason": "FailedCreate",
            "message": f"Error creating: {words}",
            "lastTimestamp": statuses.now(),
            "source": {"component": "job-controller"},
        }
        await self.api.create(EVENTS, namespace, event)

    async def _input(self, namespace: str, name: str) -> TrainerInput | None:
        """The attempt's input; None when its Secret is gone: the pod would wait for it for ever."""
        secret = await self.api.get(SECRETS, namespace, name)
        if secret is None:
            return None
        return TrainerInput.model_validate_json(base64.b64decode(text(secret, "data", "input.json")))

    async def _samples(self, namespace: str, name: str, spec: Manifest) -> list[DistillBatchItem]:
        """The attempt's samples, from its input or from the Secret that its pod mounts; none from other places."""
        volumes = at(spec, "volumes")
        mounted = [each for each in volumes if isinstance(each, dict)] if isinstance(volumes, list) else []
        found = next((each.get("secret") for each in mounted if each.get("name") == "claas-samples"), None)
        place, key = (
            (text(found, "secretName"), text(found, "items", 0, "key"))
            if isinstance(found, dict)
            else (name, SAMPLES_FILE_NAME)
        )
        secret = await self.api.get(SECRETS, namespace, place)
        data = at(secret, "data", key) if secret is not None else None
        return read_document(base64.b64decode(data)) if isinstance(data, str) else []

    async def _report(self, attempt: _Attempt, end: End, deleting: bool) -> bool:
        """Write down how the pod and its Job ended; whether the pod is held open by a sidecar."""
        namespace, pod = attempt.namespace, attempt.run.pod
        attempt.run.ended = time.monotonic()
        attempt.run.exit_code = end.exit_code
        if attempt.trainer.script.sidecar and not deleting and end.exit_code is not None:
            status = statuses.held_open_pod(attempt.address, CONTAINER, end.exit_code, end.message, SIDECAR)
            await self.api.merge(PODS, namespace, pod, {"status": status}, "status")
            return True
        if end.exit_code is not None:
            status = statuses.ended_pod(CONTAINER, end.exit_code, end.message)
            await self.api.merge(PODS, namespace, pod, {"status": status}, "status")
        if deleting or end.exit_code is None:
            await self.api.delete(PODS, namespace, pod, grace_seconds=0)
        status = statuses.ended_job(attempt.started, succeeded=end.exit_code == 0)
        try:
            await self.api.merge(BATCH_JOBS, namespace, attempt.name, {"status": status}, "status")
        except RequestRefusedError as error:
            # The Job of that name may be another one by now, in a state that this does not follow from.
            if error.status not in (409, 422):
                raise
        return False


def trainers_of(job_uid: str) -> str:
    """Label selector of a DistillJob's trainer pods."""
    return f"{JOB_UID_LABEL}={job_uid}"
