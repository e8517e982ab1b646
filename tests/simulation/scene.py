"""What a test works with: a namespace with an adapter, its vLLM pods and jobs, on a played node."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import JsonValue

from claas_contract.input import TrainerInput
from claas_crds import API_VERSION
from claas_crds.v1alpha1.conditions import Condition, condition_of
from claas_kube.objects.meta import Manifest
from claas_kube.objects.pods import Pod
from claas_kube.objects.resources import AdapterObject, JobObject
from claas_kube.objects.workloads import Lease
from claas_kube.resources import (
    ADAPTERS,
    BATCH_JOBS,
    CLAIMS,
    CONFIG_MAPS,
    DEPLOYMENTS,
    DISTILL_JOBS,
    EVENTS,
    LEASES,
    PODS,
    SECRETS,
    Resource,
)
from claas_operator.plan.serving_lease import ServingLease, lease_name, read_lease
from tests.cluster.light import LightCluster
from tests.cluster.services.control_plane import free_ports
from tests.simulation import statuses
from tests.simulation.cluster_api import NAMESPACES, ClusterApi, text
from tests.simulation.node import Node, Run, trainers_of
from tests.simulation.trainer import Script
from tests.simulation.vllm_pod import CONTROL_TOKEN, VllmServer
from tests.simulation.volume import MOUNT_PATH, Volume

T = TypeVar("T")
CLAIM = "adapters"
CONTROL_SECRET = "vllm-control"
DEPLOYMENT = "vllm"
SAMPLE: Manifest = {"user_prompt": "Which city?", "response": "Paris!", "feedback": "No exclamation marks."}


class Simulation:
    """The played node in a thread with an event loop of its own, so that tests stay plain functions."""

    def __init__(self, cluster: LightCluster, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder
        self.port = free_ports(1)[0]
        self.volume = Volume()
        self.scripts: dict[tuple[str, str, int], Script] = {}
        self.usual: dict[str, Callable[[], Script]] = {}
        """Makes the scripts of a namespace's attempts that were given none."""
        self.servers: list[VllmServer] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="simulation", daemon=True)
        self._addresses = itertools.count(1)
        self._thread.start()
        self.api = self.run(self._connect())
        # CRDs that were established just now may not be served yet; the operator would end on that.
        for resource in (ADAPTERS, DISTILL_JOBS):
            self.run(self.api.list(resource))
        self.node = Node(self.api, self.volume, self._script_for)
        self._work = self.spawn(self.node.work())

    async def _connect(self) -> ClusterApi:
        return ClusterApi(self.cluster)

    def run(self, work: Coroutine[Any, Any, T], timeout_seconds: float = 60.0) -> T:
        """Run a coroutine in the simulation's loop and wait for it."""
        return self.spawn(work).result(timeout_seconds)

    def spawn(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Have a coroutine run in the simulation's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def check(self) -> None:
        """Raise what ended the node's work, if it ended."""
        if self._work.done():
            self._work.result()

    def close(self) -> None:
        """Stop the servers, the node and its loop."""
        self.run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)

    async def _stop(self) -> None:
        await asyncio.gather(*(server.stop() for server in self.servers))
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.api.close()

    def next_address(self) -> str:
        """A loopback address that no pod has had."""
        number = next(self._addresses)
        return f"127.202.{number // 250}.{number % 250 + 1}"

    def _script_for(self, namespace: str, document: TrainerInput) -> Script:
        job = next(iter(document.jobs), None)
        key = (namespace, job.name, job.attempt) if job else (namespace, "", 0)
        made = self.scripts.get(key)
        return made or self.scripts.setdefault(key, self.usual.get(namespace, Script)())


@dataclass
class VllmPod:
    """A vLLM pod of the scene."""

    name: str
    uid: str
    server: VllmServer


@dataclass
class Scene:
    """One namespace."""

    simulation: Simulation
    namespace: str
    pods: list[VllmPod] = field(default_factory=list)

    def set_up(self) -> None:
        """Make the namespace with the claim and the control token."""
        self.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}})
        self.make_claim(CLAIM)
        self.make_secret(CONTROL_SECRET, {"token": CONTROL_TOKEN})

    def tear_down(self) -> None:
        """Release what waits, delete what the operator would go on looking at, and stop the servers."""
        for (namespace, _, _), script in self.simulation.scripts.items():
            if namespace == self.namespace:
                script.hold = False
        for resource in (DISTILL_JOBS, ADAPTERS):
            for found in self.objects(resource):
                self.delete(resource, text(found, "metadata", "name"))
                self.simulation.run(
                    self.simulation.node.collect_garbage(self.namespace, text(found, "metadata", "uid"))
                )
        for pod in list(self.pods):
            self.simulation.run(pod.server.stop())
            self.simulation.run(self.simulation.api.delete(PODS, self.namespace, pod.name, grace_seconds=0))
        for found in self.objects(ADAPTERS):
            patch: Manifest = {"metadata": {"finalizers": None}}
            self.merge(ADAPTERS, text(found, "metadata", "name"), patch)

    # Objects.

    def create(self, resource: Resource, manifest: Manifest) -> Manifest:
        """Create an object in the namespace (or a namespace)."""
        namespace = None if resource is NAMESPACES else self.namespace
        return self.simulation.run(self.simulation.api.create(resource, namespace, manifest))

    def get(self, resource: Resource, name: str) -> Manifest | None:
        """One object, or None."""
        return self.simulation.run(self.simulation.api.get(resource, self.namespace, name))

    def objects(self, resource: Resource, selector: str = "") -> list[Manifest]:
        """The namespace's objects of a kind."""
        return self.simulation.run(self.simulation.api.list(resource, self.namespace, selector))

    def merge(self, resource: Resource, name: str, patch: Manifest, subresource: str | None = None) -> None:
        """Merge-patch an object."""
        self.simulation.run(self.simulation.api.merge(resource, self.namespace, name, patch, subresource))

    def delete(self, resource: Resource, name: str) -> None:
        """Delete an object."""
        self.simulation.run(self.simulation.api.delete(resource, self.namespace, name))

    def make_claim(self, name: str) -> None:
        """A PersistentVolumeClaim."""
        spec: Manifest = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
        kind = {"apiVersion": "v1", "kind": "PersistentVolumeClaim"}
        self.create(CLAIMS, {**kind, "metadata": {"name": name}, "spec": spec})

    def make_secret(self, name: str, values: dict[str, str]) -> None:
        """A Secret."""
        data: Manifest = dict(values)
        self.create(SECRETS, {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data})

    def make_config_map(self, name: str, values: dict[str, str]) -> None:
        """A ConfigMap."""
        data: Manifest = dict(values)
        self.create(CONFIG_MAPS, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})

    # vLLM.

    def serve(
        self,
        deployment: str = DEPLOYMENT,
        *,
        replicas: int = 1,
        companion: bool = True,
        persists: bool = False,
        mounted: bool = True,
        container: Manifest | None = None,
    ) -> list[VllmPod]:
        """A Deployment and its pods, each a server that listens; the pods. `container` are further fields of the
        container in the Deployment's template."""
        labels: Manifest = {"app": deployment}
        spec = _vllm_pod_spec(mounted, container)
        template: Manifest = {"metadata": {"labels": labels}, "spec": spec}
        self.create(
            DEPLOYMENTS,
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {"name": deployment},
                "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template},
            },
        )
        made = [
            self.add_vllm_pod(f"{deployment}-{i}", deployment, companion, persists, mounted) for i in range(replicas)
        ]
        self.tell_deployment(deployment, replicas)
        return made

    def add_vllm_pod(
        self,
        name: str,
        deployment: str,
        companion: bool,
        persists: bool,
        mounted: bool,
        labels: Manifest | None = None,
    ) -> VllmPod:
        """One more pod of a Deployment, ready."""
        spec = {**_vllm_pod_spec(mounted), "nodeName": "simulated"}
        metadata: Manifest = {"name": name, "labels": labels or {"app": deployment}}
        created = self.create(PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
        address = self.simulation.next_address()
        server = VllmServer(
            self.namespace,
            address,
            self.simulation.port,
            self.simulation.volume,
            self.simulation.folder / self.namespace / name,
            companion=companion,
            persists=persists,
        )
        self.simulation.servers.append(server)
        self.simulation.run(server.start())
        self.merge(PODS, name, {"status": statuses.running_pod(address, "vllm")}, "status")
        pod = VllmPod(name, text(created, "metadata", "uid"), server)
        self.pods.append(pod)
        return pod

    def set_ready(self, pod: VllmPod, ready: bool, deployment: str = DEPLOYMENT) -> None:
        """Let kubelet find the pod ready or not, and the Deployment take note."""
        status = statuses.running_pod(pod.server.address, "vllm", ready=ready)
        self.merge(PODS, pod.name, {"status": status}, "status")
        self.tell_deployment(deployment, 1 if ready else 0)

    def tell_deployment(self, deployment: str, ready: int) -> None:
        """Have the Deployment's status say how many pods are ready."""
        status: Manifest = {"replicas": max(ready, 1), "readyReplicas": ready}
        self.merge(DEPLOYMENTS, deployment, {"status": status}, "status")

    # Adapters and jobs.

    def apply_adapter(
        self, name: str = "tone", deployment: str | None = DEPLOYMENT, engine: JsonValue = None, **serving: JsonValue
    ) -> AdapterObject:
        """A LoraAdapter on the scene's claim, by the local engine unless another is given; `serving` are further
        fields of spec.serving."""
        target: Manifest = {"deploymentRef": {"name": deployment}} if deployment is not None else {}
        target["port"] = self.simulation.port
        served: Manifest = {**target, "handover": "Sleep", **serving}
        if "controlTokenSecretRef" not in serving:
            served["controlTokenSecretRef"] = {"name": CONTROL_SECRET}
        model: Manifest = {"name": "base", "source": {"persistentVolumeClaim": {"claimName": "models"}}}
        created = self.create(
            ADAPTERS,
            {
                "apiVersion": API_VERSION,
                "kind": "LoraAdapter",
                "metadata": {"name": name},
                "spec": {
                    "model": model,
                    "serving": served,
                    "storage": {"claimName": CLAIM},
                    **({} if engine is None else {"engine": engine}),
                },
            },
        )
        return AdapterObject.model_validate(created)

    def ready_adapter(self, name: str = "tone", deployment: str = DEPLOYMENT, **serving: JsonValue) -> AdapterObject:
        """A LoraAdapter that serves its initial version."""
        self.apply_adapter(name, deployment, **serving)
        return self.wait_for_adapter(name, lambda adapter: holds(adapter.status.conditions, "Ready"))

    def apply_job(
        self, name: str = "step", adapter: str = "tone", *, samples: Manifest | None = None, **spec: JsonValue
    ) -> JobObject:
        """A DistillJob; one inline sample unless told otherwise."""
        chosen: Manifest = samples if samples is not None else {"inline": [SAMPLE]}
        created = self.create(
            DISTILL_JOBS,
            {
                "apiVersion": API_VERSION,
                "kind": "DistillJob",
                "metadata": {"name": name},
                "spec": {"adapterRef": {"name": adapter}, "samples": chosen, **spec},
            },
        )
        return JobObject.model_validate(created)

    def script(self, script: Script, job: str = "step", attempt: int = 1) -> Script:
        """Say what an attempt will do."""
        self.simulation.scripts[self.namespace, job, attempt] = script
        return script

    def adapter(self, name: str = "tone") -> AdapterObject:
        """The LoraAdapter as it is now."""
        found = self.get(ADAPTERS, name)
        assert found is not None, f"there is no LoraAdapter {name}"
        return AdapterObject.model_validate(found)

    def job(self, name: str = "step") -> JobObject:
        """The DistillJob as it is now."""
        found = self.get(DISTILL_JOBS, name)
        assert found is not None, f"there is no DistillJob {name}"
        return JobObject.model_validate(found)

    def jobs(self) -> list[JobObject]:
        """All DistillJobs."""
        return [JobObject.model_validate(found) for found in self.objects(DISTILL_JOBS)]

    def lease(self, deployment: str = DEPLOYMENT) -> ServingLease | None:
        """The serving lease of a Deployment."""
        found = self.get(LEASES, lease_name(deployment))
        return read_lease(Lease.model_validate(found)) if found else None

    def remove_job(self, name: str = "step") -> None:
        """Delete a DistillJob, and what belongs to it as the garbage collector does."""
        uid = self.job(name).metadata.uid
        self.delete(DISTILL_JOBS, name)
        self.simulation.run(self.simulation.node.collect_garbage(self.namespace, uid))

    def events(self, name: str) -> list[tuple[str, str, str]]:
        """Type, reason and message of the Events about an object, oldest first."""
        found = [event for event in self.objects(EVENTS) if text(event, "involvedObject", "name") == name]
        found.sort(key=lambda event: text(event, "eventTime"))
        return [(text(event, "type"), text(event, "reason"), text(event, "message")) for event in found]

    def trainer_pods(self, job_uid: str) -> list[Pod]:
        """A job's trainer pods."""
        return [Pod.model_validate(pod) for pod in self.objects(PODS, trainers_of(job_uid))]

    def batch_jobs(self) -> list[str]:
        """Names of the namespace's batch Jobs."""
        return [text(job, "metadata", "name") for job in self.objects(BATCH_JOBS)]

    def runs(self, job: str | None = None) -> list[Run]:
        """The trainer pods there were for steps, of one job or of all."""
        return [
            run
            for run in self.simulation.node.runs
            if run.namespace == self.namespace and run.job is not None and job in (None, run.job)
        ]

    # Waiting.

    def wait(
        self, what: str, check: Callable[[], T | None], timeout_seconds: float = 20.0, every_seconds: float = 0.1
    ) -> T:
        """Ask again until there is an answer; fails naming what was waited for."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            self.simulation.check()
            found = check()
            if found:
                return found
            assert time.monotonic() < deadline, f"{what}: not within {timeout_seconds:g} s"
            time.sleep(every_seconds)

    def wait_for_adapter(
        self, name: str, check: Callable[[AdapterObject], bool], timeout_seconds: float = 20.0
    ) -> AdapterObject:
        """Wait until a LoraAdapter is as wanted."""
        return _wait_for(lambda: self.adapter(name), check, timeout_seconds, self.simulation)

    def wait_for_job(self, name: str, check: Callable[[JobObject], bool], timeout_seconds: float = 20.0) -> JobObject:
        """Wait until a DistillJob is as wanted."""
        return _wait_for(lambda: self.job(name), check, timeout_seconds, self.simulation)

    def wait_until(self, job: str, condition: str, timeout_seconds: float = 20.0) -> JobObject:
        """Wait until a condition of a DistillJob is True."""
        return self.wait_for_job(job, lambda job: holds(job.status.conditions, condition), timeout_seconds)

    def wait_until_reached(self, script: Script, timeout_seconds: float = 20.0) -> None:
        """Wait until a trainer is at its script's moment."""
        self.wait("the script's moment", lambda: script.reached, timeout_seconds)


def holds(conditions: list[Condition], kind: str) -> bool:
    """Whether a condition is there and True."""
    found = condition_of(conditions, kind)
    return found is not None and found.status == "True"


def reason_of(conditions: list[Condition], kind: str) -> str:
    """A condition's reason; empty while there is none."""
    found = condition_of(conditions, kind)
    return found.reason if found else ""


O = TypeVar("O", AdapterObject, JobObject)  # noqa: E741


def _wait_for(read: Callable[[], O], check: Callable[[O], bool], timeout_seconds: float, simulation: Simulation) -> O:
    deadline = time.monotonic() + timeout_seconds
    while True:
        simulation.check()
        found = read()
        if check(found):
            return found
        if time.monotonic() > deadline:
            said = [f"{each.type}={each.status} {each.reason}: {each.message}" for each in found.status.conditions]
            raise AssertionError(f"{found.metadata.name} is not as wanted after {timeout_seconds:g} s: {said}")
        time.sleep(0.1)


def _vllm_pod_spec(mounted: bool, container: Manifest | None = None) -> Manifest:
    mounts: list[JsonValue] = [{"name": "adapters", "mountPath": MOUNT_PATH}] if mounted else []
    volume: Manifest = {"name": "adapters", "persistentVolumeClaim": {"claimName": CLAIM}}
    return {
        "containers": [{"name": "vllm", "image": "none", "volumeMounts": mounts, **(container or {})}],
        "volumes": [volume] if mounted else [],
    }
