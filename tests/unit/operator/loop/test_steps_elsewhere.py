"""Steps that are computed elsewhere: many adapters at once, never more than there are places, and nobody waits for
ever."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest

from claas_crds.v1alpha1.conditions import AdapterCondition, JobCondition
from claas_crds.v1alpha1.distill_job import CompletionPoint, DistillJobStatus
from claas_crds.v1alpha1.engine import EngineName, EngineSpec
from claas_crds.v1alpha1.step import JobPhase
from claas_kube.objects.meta import Manifest, ObjectMeta
from claas_kube.objects.resources import AdapterObject, JobObject
from claas_kube.objects.workloads import Lease
from claas_kube.resources import ADAPTERS, BATCH_JOBS, CLAIMS, DEPLOYMENTS, DISTILL_JOBS, LEASES
from claas_operator.clients.cluster_index import ClusterIndex
from claas_operator.clients.job_view import JobView
from claas_operator.keys import Key, Kind
from claas_operator.loop.reconcile import Reconciler
from claas_operator.plan.serving_lease import ServingLease, read_lease
from tests.builders.api_server import SmallApi, serving_api
from tests.builders.reconciler import SETTINGS, reconciler_of
from tests.builders.world import adapter as adapter_object
from tests.builders.world import ago, condition
from tests.builders.world import job as job_object

MOST = 3
ADAPTERS_MANY = 8
BY_TINKER = EngineSpec.model_validate({"tinker": {"export": True}})
DEPLOYMENT: Manifest = {
    "metadata": {"name": "vllm"},
    "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "vllm"}}, "template": {"spec": {"containers": []}}},
}


def plain(found: AdapterObject | JobObject) -> Manifest:
    dumped: Manifest = found.model_dump(mode="json", by_alias=True, exclude_none=True)
    return dumped


def placed(metadata: ObjectMeta, name: str, namespace: str, age: float) -> ObjectMeta:
    at = {"name": name, "namespace": namespace, "uid": f"uid-of-{namespace}-{name}", "creation_timestamp": ago(age)}
    return metadata.model_copy(update=at)


@dataclass
class Cluster:
    """Adapters in two namespaces, all behind a vLLM of their namespace, with some jobs each."""

    server: SmallApi
    index: ClusterIndex
    reconciler: Reconciler
    granted: list[str] = field(default_factory=list)
    """Adapters, in the order of their turns."""

    async def add(self, number: int, jobs: int, engine: EngineSpec = BY_TINKER) -> None:
        namespace, name = f"team-{number % 2}", f"a{number}"
        adapter = adapter_object(name, serving={"handover": "Sleep"}, engine=engine)
        adapter = adapter.model_copy(update={"metadata": placed(adapter.metadata, name, namespace, 900)})
        await self.index.adapters.take(self.server.put(ADAPTERS, namespace, plain(adapter)))
        for at in range(jobs):
            await self.add_job(namespace, f"{name}-{at}", name, 600 - 10 * at - number)

    async def add_job(self, namespace: str, name: str, adapter: str, age: float) -> None:
        job = job_object(complete_when=CompletionPoint.PUBLISHED)
        spec = job.spec.model_copy(update={"adapter_ref": job.spec.adapter_ref.model_copy(update={"name": adapter})})
        job = job.model_copy(update={"metadata": placed(job.metadata, name, namespace, age), "spec": spec})
        await self.index.jobs.take(self.server.put(DISTILL_JOBS, namespace, plain(job)))

    @property
    def leases(self) -> list[ServingLease]:
        found = [each for path, each in self.server.objects.items() if "/leases/" in path]
        return [read_lease(Lease.model_validate(each)) for each in found]

    @property
    def held(self) -> list[ServingLease]:
        return [lease for lease in self.leases if lease.grant is not None]

    async def passes(self) -> None:
        """Passes over all jobs, in any order and side by side."""
        keys = [Key(Kind.JOB, job.namespace, job.name) for job in self.index.jobs.within(None) if not job.finished]
        random.shuffle(keys)
        before = {lease.grant.names for lease in self.held if lease.grant is not None}
        await asyncio.gather(*(self.reconciler.reconcile(key) for key in keys))
        await asyncio.gather(*(self.reconciler.reconcile(key) for key in keys))
        for lease in sorted(self.held, key=lambda each: each.last_granted or ago(0)):
            if lease.grant is not None and lease.grant.names not in before:
                self.granted.append(lease.grant.adapter_name)

    async def end(self, lease: ServingLease) -> None:
        """The step of a held lease is over: its job is done, its trainer gone."""
        assert lease.grant is not None
        name = lease.grant.first.name
        found = JobObject.model_validate(self.server.found(DISTILL_JOBS, lease.namespace, name))
        status = DistillJobStatus(
            phase=JobPhase.FAILED, conditions=[condition(JobCondition.FAILED, True)], observed_generation=1
        )
        await self.index.jobs.take(
            self.server.put(DISTILL_JOBS, lease.namespace, plain(found.model_copy(update={"status": status})))
        )
        for path in [path for path in self.server.objects if path.startswith(BATCH_JOBS.path(lease.namespace))]:
            if path.rsplit("/", 1)[1].startswith(name):
                self.server.remove(BATCH_JOBS, lease.namespace, path.rsplit("/", 1)[1])
                self.index.batch_jobs.drop(lease.namespace, path.rsplit("/", 1)[1], str(self.server.version))
        await self.reconciler.reconcile(Key(Kind.LEASE, lease.namespace, lease.name))


@asynccontextmanager
async def cluster() -> AsyncIterator[Cluster]:
    server = SmallApi()
    for namespace in ("team-0", "team-1"):
        server.put(DEPLOYMENTS, namespace, DEPLOYMENT)
        server.put(CLAIMS, namespace, {"metadata": {"name": "adapters"}})
    async with serving_api(server) as api:
        index = ClusterIndex(api, JobView(), (None,))
        index.complete = True
        settings = replace(SETTINGS, max_concurrent_steps=MOST)
        yield Cluster(server, index, reconciler_of(api, index, settings))


async def test_steps_of_many_adapters_behind_one_vllm_are_under_way_at_once_up_to_the_limit() -> None:
    async with cluster() as made:
        for number in range(ADAPTERS_MANY):
            await made.add(number, jobs=2)
        await made.passes()
        assert len(made.held) == MOST
        waiting = [job for job in made.index.jobs.within(None) if job.phase is JobPhase.QUEUED]
        said = [job.whole().status.message or "" for job in waiting]
        assert any("CLAAS_MAX_CONCURRENT_STEPS" in each for each in said)


async def test_every_adapter_has_a_turn_before_any_has_two_more_and_all_come_to_an_end() -> None:
    async with cluster() as made:
        for number in range(ADAPTERS_MANY):
            await made.add(number, jobs=2)
        for _ in range(3 * ADAPTERS_MANY):
            await made.passes()
            assert len(made.held) <= MOST
            if not made.held:
                break
            await made.end(random.choice(made.held))
        assert all(job.finished for job in made.index.jobs.within(None))


async def test_the_release_of_a_place_wakes_the_next_adapter_in_turn() -> None:
    async with cluster() as made:
        for number in range(MOST + 1):
            await made.add(number, jobs=1)
        await made.passes()
        (waits,) = [job for job in made.index.jobs.within(None) if job.phase is JobPhase.QUEUED]
        woken: list[Key] = []
        made.reconciler.leases._wake = woken.append
        await made.end(made.held[0])
        assert Key(Kind.JOB, waits.namespace, waits.name) in woken


async def test_local_steps_of_the_same_deployment_neither_wait_for_nor_hold_up_any_of_them() -> None:
    async with cluster() as made:
        await made.add(0, jobs=2, engine=EngineSpec.of(EngineName.LOCAL))
        await made.add(2, jobs=1)
        await made.add(4, jobs=1)
        await made.passes()
        assert sorted(lease.name for lease in made.held) == [
            "claas-serving-vllm",
            "claas-steps-a2",
            "claas-steps-a4",
        ]


async def test_before_all_is_known_nobody_is_asked_who_is_next() -> None:
    """An operator of some namespaces may not list the others."""
    async with cluster() as made:
        await made.add(0, jobs=1)
        made.index.complete = False
        await made.reconciler.leases.wake_elsewhere()
        assert made.server.asked == []
        made.index.complete = True
        woken: list[Key] = []
        made.reconciler.leases._wake = woken.append
        await made.reconciler.leases.wake_elsewhere()
        assert [key.name for key in woken] == ["a0-0"]


@pytest.mark.parametrize("gone", [True, False])
async def test_an_adapters_lease_goes_with_the_adapter(gone: bool) -> None:
    async with cluster() as made:
        await made.add(0, jobs=1)
        await made.passes()
        (lease,) = made.held
        await made.end(lease)
        if gone:
            made.server.remove(ADAPTERS, "team-0", "a0")
            made.index.adapters.drop("team-0", "a0", str(made.server.version))
        await made.reconciler.reconcile(Key(Kind.LEASE, "team-0", lease.name))
        assert (LEASES.path("team-0", lease.name) in made.server.objects) is not gone


async def test_a_step_under_way_keeps_its_lease_when_the_engine_is_changed_and_its_failure_is_accounted_for() -> None:
    local = EngineSpec.model_validate({"local": {}})
    async with cluster() as made:
        await made.add(0, jobs=1, engine=local)
        await made.passes()
        (before,) = made.held
        assert before.adapter is None
        await made.add(0, jobs=0, engine=BY_TINKER)
        await made.passes()
        assert [lease.name for lease in made.held] == [before.name]
        (job,) = made.index.jobs.within(None)
        assert job.phase is JobPhase.PREPARING
        # Its trainer fails; the refused engine has made the adapter Stalled meanwhile.
        stalled = condition(AdapterCondition.STALLED, True)
        found = AdapterObject.model_validate(made.server.found(ADAPTERS, "team-0", "a0"))
        status = found.status.model_copy(update={"conditions": [*found.status.conditions, stalled]})
        await made.index.adapters.take(
            made.server.put(ADAPTERS, "team-0", plain(found.model_copy(update={"status": status})))
        )
        for path in [path for path in made.server.objects if path.startswith(BATCH_JOBS.path("team-0"))]:
            ended: Manifest = {"conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}]}
            batch = {**made.server.objects[path], "status": ended}
            await made.index.batch_jobs.take(made.server.put(BATCH_JOBS, "team-0", batch))
        key = Key(Kind.JOB, "team-0", job.name)
        for _ in range(4):
            await made.reconciler.reconcile(key)
        (job,) = made.index.jobs.within(None)
        assert job.whole().status.failed_attempts == 1
