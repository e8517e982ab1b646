"""Job controller, kubelet and garbage collector: batch Jobs of the operator become pods that run a script."""

from __future__ import annotations

import asyncio
import base64
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from claas_contract.input import TrainerInput
from claas_kube.api import (
    BATCH_JOBS,
    EVENTS,
    PODS,
    SECRETS,
)
from claas_kube.objects.meta import Manifest
from claas_operator.plan.naming import JOB_UID_LABEL
from tests.simulation import statuses
from tests.simulation.cluster_api import ClusterApi, RequestRefusedError, text
from tests.simulation.cluster_api import field as at
from tests.simulation.trainer import (
    KILLED,
    End,
    Script,
    Trainer,
)
from tests.simulation.vllm_pod import CONTROL_TOKEN
from tests.simulation.volume import Volume

LOOK_SECONDS = 0.1
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
        taken = self.document.job if self.document.parent is not None else None
        return taken.name if taken else None


@dataclass
class _Attempt:
    uid: str
    name: str
    namespace: str
    trainer: Trainer
    run: Run
    started: str
    work: asyncio.Task[End]
    kill_at: float | None = None
    address: str = ""


@dataclass
class Node:
    """The played node. `script_for` says what each attempt does; `runs` are all trainer pods there were."""

    api: ClusterApi
    volume: Volume
    script_for: ScriptFor
    runs: list[Run] = field(default_factory=list)
    _attempts: dict[str, _Attempt] = field(default_factory=dict)
    _held_open: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Namespace and name of pods whose trainer has ended, by the UIDs of their Jobs."""
    _seen: set[str] = field(default_factory=set)
    _addresses: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    async def work(self) -> None:
        """Look at the cluster again and again, until cancelled."""
        while True:
            await self._look()
            await asyncio.sleep(LOOK_SECONDS)

    def leave_alone(self, job_uid: str) -> None:
        """Start nothing for a batch Job whose pod was made elsewhere."""
        self._seen.add(job_uid)

    async def collect_garbage(self, namespace: str, owner_uid: str) -> None:
        """Delete what belonged to an object that is gone, as the garbage collector would."""
        for resource in (BATCH_JOBS, SECRETS):
            for found in await self.api.list(resource, namespace, OURS, metadata_only=True):
                if text(found, "metadata", "ownerReferences", 0, "uid") == owner_uid:
                    await self.api.delete(resource, namespace, text(found, "metadata", "name"))

    async def _look(self) -> None:
        jobs = await self.api.list(BATCH_JOBS, None, OURS)
        present = {text(job, "metadata", "uid") for job in jobs}
        for job in jobs:
            uid = text(job, "metadata", "uid")
            if uid not in self._seen:
                self._seen.add(uid)
                await self._start(job)
        for uid in [uid for uid in self._held_open if uid not in present]:
            namespace, pod = self._held_open.pop(uid)
            await self.api.delete(PODS, namespace, pod, grace_seconds=0)
        if not self._attempts:
            return
        pods = await self.api.list(PODS, None, OURS, metadata_only=True)
        by_name = {(text(pod, "metadata", "namespace"), text(pod, "metadata", "name")): pod for pod in pods}
        for attempt in list(self._attempts.values()):
            await self._follow(attempt, by_name.get((attempt.namespace, attempt.run.pod)), attempt.uid in present)

    async def _start(self, job: Manifest) -> None:
        """Make the pod of a batch Job and let its trainer run."""
        namespace, name = text(job, "metadata", "namespace"), text(job, "metadata", "name")
        uid = text(job, "metadata", "uid")
        document = await self._input(namespace, name)
        if document is None:
            return
        script = self.script_for(namespace, document)
        if script.refused:
            await self._refuse(job, script.refused)
            return
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
        await self.api.create(PODS, namespace, manifest)
        number = next(self._addresses)
        address = f"127.201.{number // 250}.{number % 250 + 1}"
        await self.api.merge(PODS, namespace, pod, {"status": statuses.running_pod(address, CONTAINER)}, "status")
        started = statuses.now()
        await self.api.merge(BATCH_JOBS, namespace, name, {"status": statuses.active_job(started)}, "status")
        token = CONTROL_TOKEN if document.serving is not None and document.serving.has_control_token else None
        trainer = Trainer(namespace, document, script, self.volume, token)
        served_by = frozenset(pod.name for pod in document.serving.pods) if document.serving else frozenset()
        run = Run(namespace, pod, document, served_by, time.monotonic())
        self.runs.append(run)
        work = asyncio.create_task(trainer.run(), name=pod)
        self._attempts[uid] = _Attempt(uid, name, namespace, trainer, run, started, work, address=address)

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

    async def _follow(self, attempt: _Attempt, pod: Manifest | None, job_present: bool) -> None:
        deleting = pod is not None and at(pod, "metadata", "deletionTimestamp") is not None
        if pod is not None and not deleting and not job_present:
            # The garbage collector deletes the pods of a Job that is gone.
            await self.api.delete(PODS, attempt.namespace, attempt.run.pod)
            deleting = True
        if deleting and attempt.kill_at is None:
            grace = at(pod, "metadata", "deletionGracePeriodSeconds")
            attempt.trainer.told.set()
            attempt.kill_at = time.monotonic() + (grace if isinstance(grace, int) else 30)
        if attempt.work.done():
            await self._report(attempt, attempt.work.result(), deleting)
        elif attempt.kill_at is not None and (pod is None or time.monotonic() >= attempt.kill_at):
            attempt.work.cancel()
            await asyncio.gather(attempt.work, return_exceptions=True)
            await self._report(attempt, End(KILLED), True)
        elif pod is None:
            raise AssertionError(f"pod {attempt.run.pod} is gone while its trainer runs")

    async def _report(self, attempt: _Attempt, end: End, deleting: bool) -> None:
        """Write down how the pod and its Job ended."""
        namespace, pod = attempt.namespace, attempt.run.pod
        attempt.run.ended = time.monotonic()
        attempt.run.exit_code = end.exit_code
        del self._attempts[attempt.uid]
        if attempt.trainer.script.sidecar and not deleting and end.exit_code is not None:
            status = statuses.held_open_pod(attempt.address, CONTAINER, end.exit_code, end.message, SIDECAR)
            await self.api.merge(PODS, namespace, pod, {"status": status}, "status")
            self._held_open[attempt.uid] = (namespace, pod)
            return
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


def trainers_of(job_uid: str) -> str:
    """Label selector of a DistillJob's trainer pods."""
    return f"{JOB_UID_LABEL}={job_uid}"
