"""The lease goes from job to job in one write, unless there is something that only a free lease's pass does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from claas_crds.v1alpha1.distill_job import CompletionPoint, DistillJobStatus
from claas_crds.v1alpha1.step import JobPhase
from claas_kube.objects.meta import Manifest
from claas_kube.objects.resources import AdapterObject, JobObject
from claas_kube.objects.workloads import Lease
from claas_kube.resources import ADAPTERS, BATCH_JOBS, CLAIMS, DEPLOYMENTS, DISTILL_JOBS, LEASES
from claas_operator.clients.cluster_index import ClusterIndex
from claas_operator.clients.job_view import JobView
from claas_operator.keys import Key, Kind
from claas_operator.loop.reconcile import CONFLICT_SECONDS, Reconciler
from claas_operator.plan.lease import WATCH_SECONDS
from claas_operator.plan.naming import attempt_name
from claas_operator.plan.serving_lease import (
    ServedName,
    ServedRecord,
    ServingLease,
    Unaccounted,
    lease_manifest,
    read_lease,
    served_lease_name,
    served_name_manifest,
)
from tests.builders.api_server import SmallApi, serving_api
from tests.builders.reconciler import reconciler_of
from tests.builders.world import NAMESPACE, adapter, grant, job, lease

LEASE = Key(Kind.LEASE, NAMESPACE, "claas-serving-vllm")
WAITS = job(
    "waits",
    status=DistillJobStatus(phase=JobPhase.QUEUED, observed_generation=1),
    complete_when=CompletionPoint.PUBLISHED,
)
WAITS_ATTEMPT = attempt_name(WAITS.metadata, 1)
TONE = adapter(serving={"handover": "Sleep"})
DEPLOYMENT: Manifest = {
    "metadata": {"name": "vllm"},
    "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "vllm"}}, "template": {"spec": {"containers": []}}},
}
RECORD = ServedRecord(adapter_name="gone", adapter_uid="uid-of-gone", port=8000)
GONE = ServedName(namespace=NAMESPACE, deployment="vllm", served_name="gone", record=RECORD)
LOST = Unaccounted(job_name="lost", attempt=1, adapter_name="gone", adapter_uid="uid-of-gone")


def plain(found: AdapterObject | JobObject) -> Manifest:
    dumped: Manifest = found.model_dump(mode="json", by_alias=True, exclude_none=True)
    return dumped


@dataclass
class Queue:
    """A Deployment without pods, whose lease a job holds that is gone, and a job that waits."""

    server: SmallApi
    index: ClusterIndex
    reconciler: Reconciler

    @property
    def lease(self) -> ServingLease:
        return read_lease(Lease.model_validate(self.server.found(LEASES, NAMESPACE, LEASE.name)))


@asynccontextmanager
async def queue(held: ServingLease, *names: ServedName) -> AsyncIterator[Queue]:
    server = SmallApi()
    server.put(DEPLOYMENTS, NAMESPACE, DEPLOYMENT)
    server.put(CLAIMS, NAMESPACE, {"metadata": {"name": "adapters"}})
    async with serving_api(server) as api:
        index = ClusterIndex(api, JobView(), (None,))
        await index.adapters.take(server.put(ADAPTERS, NAMESPACE, plain(TONE)))
        await index.jobs.take(server.put(DISTILL_JOBS, NAMESPACE, plain(WAITS)))
        await index.leases.take(server.put(LEASES, NAMESPACE, lease_manifest(held)))
        for name in names:
            await index.leases.take(server.put(LEASES, NAMESPACE, served_name_manifest(name)))
        index.complete = True
        yield Queue(server, index, reconciler_of(api, index))


HELD = lease(grant("ended", pods=()).model_copy(update={"adapter_uid": "uid-of-an-earlier-tone"}))


async def test_the_lease_goes_to_the_next_job_in_one_write() -> None:
    async with queue(HELD) as made:
        await made.reconciler.reconcile(LEASE)
        assert made.lease.holder == WAITS.metadata.uid
        assert made.server.counted()[f"PUT {LEASES.path(NAMESPACE, LEASE.name)}"] == 1


LEFT: list[tuple[str, ServingLease, tuple[ServedName, ...]]] = [
    ("a name without an adapter", HELD, (GONE,)),
    ("records as release 0.1 kept them", HELD.model_copy(update={"served": {"gone": RECORD}}), ()),
    ("a job to account for without an adapter", HELD.model_copy(update={"unaccounted": {"uid-of-lost": LOST}}), ()),
]


@pytest.mark.parametrize(("held", "names"), [row[1:] for row in LEFT], ids=[row[0] for row in LEFT])
async def test_the_lease_is_free_for_a_pass_while_there_is(held: ServingLease, names: tuple[ServedName, ...]) -> None:
    """Else nothing would take a deleted adapter out of service while jobs come without end."""
    async with queue(held, *names) as made:
        again = await made.reconciler.reconcile(LEASE)
        assert made.lease.grant is None
        gone = served_lease_name("vllm", "gone")
        while again is not None:
            again = await made.reconciler.reconcile(LEASE)
            if LEASES.path(NAMESPACE, gone) not in made.server.objects:
                made.index.leases.drop(NAMESPACE, gone, str(made.server.version))
        assert LEASES.path(NAMESPACE, gone) not in made.server.objects
        assert (made.lease.served, made.lease.unaccounted) == ({}, {})


async def test_the_lease_stays_while_an_attempt_is_being_made_though_its_job_was_deleted_meanwhile() -> None:
    """No list shows that attempt yet; with the lease another job would get a trainer beside it."""
    async with queue(lease(grant("waits", pods=()))) as made:
        held: list[bool] = []

        def deleted_just_now(method: str, path: str) -> None:
            if method == "POST" and path == BATCH_JOBS.path(NAMESPACE):
                made.index.jobs.collection.drop(NAMESPACE, "waits", "1000")
                held.append(WAITS.metadata.uid in made.reconciler.leases.making)

        made.server.refuse = deleted_just_now
        await made.reconciler.reconcile(Key(Kind.JOB, NAMESPACE, "waits"))
        assert held == [True]
        made.server.remove(BATCH_JOBS, NAMESPACE, WAITS_ATTEMPT)
        made.server.remove(DISTILL_JOBS, NAMESPACE, "waits")
        made.index.batch_jobs.drop(NAMESPACE, WAITS_ATTEMPT, "1000")
        made.reconciler.leases.making.add(WAITS.metadata.uid)
        assert await made.reconciler.reconcile(LEASE) == WATCH_SECONDS
        assert made.lease.holder == WAITS.metadata.uid
        made.reconciler.leases.making.clear()
        await made.reconciler.reconcile(LEASE)
        assert made.lease.grant is None


async def test_what_belongs_to_an_adapter_that_this_release_can_not_read_stays() -> None:
    """A newer release wrote it: it is no reason to take it out of service, or to forget a job of it."""
    async with queue(lease().model_copy(update={"unaccounted": {"uid-of-lost": LOST}}), GONE) as made:
        strange = plain(TONE)
        metadata: Manifest = {"name": "gone", "uid": "uid-of-gone"}
        found = made.server.put(ADAPTERS, NAMESPACE, {**strange, "metadata": metadata, "spec": {"model": "new"}})
        await made.index.adapters.take(found)
        await made.reconciler.reconcile(LEASE)
        assert LEASES.path(NAMESPACE, served_lease_name("vllm", "gone")) in made.server.objects
        assert made.lease.unaccounted == {"uid-of-lost": LOST}
        made.server.remove(ADAPTERS, NAMESPACE, "gone")
        made.index.adapters.drop(NAMESPACE, "gone", str(made.server.version))
        await made.reconciler.reconcile(LEASE)
        assert LEASES.path(NAMESPACE, served_lease_name("vllm", "gone")) not in made.server.objects
        assert made.lease.unaccounted == {}


async def test_a_job_that_is_gone_though_no_event_tells_so_is_looked_for_once() -> None:
    """Else it would keep the lease, and be looked for at each pass, until the watch is heard again."""
    async with queue(lease(grant("waits", pods=()))) as made:
        del made.server.objects[DISTILL_JOBS.path(NAMESPACE, "waits")]
        assert await made.reconciler.reconcile(Key(Kind.JOB, NAMESPACE, "waits")) == CONFLICT_SECONDS
        assert made.index.jobs.get(NAMESPACE, "waits") is None
