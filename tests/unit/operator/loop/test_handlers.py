"""Which change of the index wakes which key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from pydantic import JsonValue

from claas_kube.objects.meta import Manifest
from claas_kube.resources import ADAPTERS, BATCH_JOBS, DEPLOYMENTS, DISTILL_JOBS, PODS, Resource
from claas_operator.__main__ import _resync
from claas_operator.clients.cluster_index import ClusterIndex
from claas_operator.clients.job_view import JobView
from claas_operator.keys import Key, Kind
from claas_operator.loop.handlers import Wakers
from claas_operator.loop.reconcile import Reconciler
from claas_operator.plan import naming
from claas_operator.plan.serving_lease import lease_manifest
from tests.builders.api_server import SmallApi, serving_api
from tests.builders.reconciler import reconciler_of, watching
from tests.builders.world import NAMESPACE, adapter, grant, job, lease

ADAPTER = Key(Kind.ADAPTER, NAMESPACE, "tone")
JOB = Key(Kind.JOB, NAMESPACE, "step")
LEASE = Key(Kind.LEASE, NAMESPACE, "claas-serving-vllm")


@dataclass
class Woken:
    """An index that nothing runs but the test, and the keys that it woke."""

    index: ClusterIndex
    reconciler: Reconciler
    wakers: Wakers
    keys: set[Key]

    async def by(self, resource: Resource, found: Manifest) -> set[Key]:
        """What a change wakes."""
        self.keys.clear()
        collection = {
            ADAPTERS: self.index.adapters,
            DISTILL_JOBS: self.index.jobs.collection,
            BATCH_JOBS: self.index.batch_jobs,
            PODS: self.index.trainer_pods,
        }[resource]
        await collection.take(found)  # type: ignore[attr-defined]
        return set(self.keys)


@asynccontextmanager
async def woken() -> AsyncIterator[Woken]:
    async with serving_api(SmallApi()) as api:
        index = ClusterIndex(api, JobView(), (None,))
        reconciler = reconciler_of(api, index)
        keys: set[Key] = set()
        reconciler.queue.wake = lambda key, after_seconds=0.0: keys.add(key)  # type: ignore[method-assign]
        yield Woken(index, reconciler, Wakers(reconciler, index), keys)


def plain(found: object, version: int, **changes: JsonValue) -> Manifest:
    dumped: Manifest = found.model_dump(mode="json", by_alias=True, exclude_none=True)  # type: ignore[attr-defined]
    metadata = dumped["metadata"]
    assert isinstance(metadata, dict)
    return {**dumped, **changes, "metadata": {**metadata, "resourceVersion": str(version)}}


def child(version: int, *, ended: bool, retired: bool) -> Manifest:
    labels: Manifest = {**naming.TRAINER_LABELS, naming.OWNER_KIND_LABEL: "DistillJob"}
    metadata: Manifest = {
        "name": "step-1",
        "namespace": NAMESPACE,
        "uid": "uid-of-step-1",
        "resourceVersion": str(version),
        "labels": labels,
        "annotations": {naming.OWNER_NAME_ANNOTATION: "step"},
    }
    conditions: list[JsonValue] = [{"type": "Complete", "status": "True"}] if ended else []
    spec: Manifest = {"ttlSecondsAfterFinished": 3600} if retired else {}
    return {"metadata": metadata, "spec": spec, "status": {"conditions": conditions}}


async def test_an_adapter_wakes_itself_and_is_forgotten_when_it_is_gone() -> None:
    async with woken() as made:
        assert await made.by(ADAPTERS, plain(adapter(), 1)) == {ADAPTER}
        assert [known.deployment for known in made.wakers.adapters.all()] == ["vllm"]
        assert await made.by(ADAPTERS, plain(adapter(), 2, status={"conditions": "none"})) == {ADAPTER}
        assert [known.ready for known in made.wakers.adapters.all()] == [False], "it can't be read any more"
        made.keys.clear()
        made.index.adapters.drop(NAMESPACE, "tone", "3")
        assert made.keys == {ADAPTER}
        assert list(made.wakers.adapters.all()) == []


async def test_an_adapters_status_is_our_own_and_wakes_nobody_and_an_annotation_does() -> None:
    async with woken() as made:
        await made.by(ADAPTERS, plain(adapter(), 1))
        assert await made.by(ADAPTERS, plain(adapter(versions=(0, 1), served=1), 2)) == set()
        seen = plain(adapter(), 3)
        metadata = seen["metadata"]
        assert isinstance(metadata, dict)
        assert await made.by(ADAPTERS, {**seen, "metadata": {**metadata, "annotations": {"look": "now"}}}) == {
            ADAPTER
        }


async def test_a_queued_job_is_looked_at_when_its_turn_has_come_and_when_it_goes_its_lease_is() -> None:
    status: Manifest = {"phase": "Queued", "observedGeneration": 1}
    async with woken() as made:
        await made.by(ADAPTERS, plain(adapter(), 1))
        assert await made.by(DISTILL_JOBS, plain(job(), 1)) == {JOB}
        assert await made.by(DISTILL_JOBS, plain(job(), 2, status=status)) == set()
        assert await made.by(
            DISTILL_JOBS, plain(job(suspend=True), 3, status={**status, "observedGeneration": 0})
        ) == {JOB, LEASE}
        await made.by(DISTILL_JOBS, plain(job(), 4, status=status))
        made.keys.clear()
        made.index.jobs.collection.drop(NAMESPACE, "step", "5")
        assert made.keys == {JOB, LEASE}


@pytest.mark.parametrize(
    ("changes", "wakes"),
    [
        ({"phase": "Pending"}, True),
        ({"phase": "Preparing"}, False),
        ({"phase": "Swapping", "producedVersion": 1, "producedPath": "versions/1"}, False),
    ],
)
async def test_when_a_queued_job_gives_up_its_place_by_whatever_write_its_lease_is_looked_at(
    changes: Manifest, wakes: bool
) -> None:
    """A pass that failed leaves its job Pending, and nothing else would wake those behind it."""
    status: Manifest = {"phase": "Queued", "observedGeneration": 1}
    async with woken() as made:
        await made.by(ADAPTERS, plain(adapter(), 1))
        await made.by(DISTILL_JOBS, plain(job(), 2, status=status))
        assert (LEASE in await made.by(DISTILL_JOBS, plain(job(), 3, status={**status, **changes}))) is wakes


async def test_when_another_job_has_a_queued_jobs_name_its_lease_is_looked_at() -> None:
    async with woken() as made:
        await made.by(ADAPTERS, plain(adapter(), 1))
        await made.by(DISTILL_JOBS, plain(job(), 2))
        again = plain(job(), 3)
        metadata = again["metadata"]
        assert isinstance(metadata, dict)
        assert LEASE in await made.by(DISTILL_JOBS, {**again, "metadata": {**metadata, "uid": "uid-of-another"}})


@pytest.mark.parametrize(("has_lease", "wakes"), [(False, JOB), (True, LEASE)])
async def test_a_resync_wakes_the_lease_and_queued_jobs_themselves_where_there_is_none(
    has_lease: bool, wakes: Key
) -> None:
    """A told job that is queued is else looked at only when a pass over its Lease wakes it."""
    async with woken() as made:
        await made.by(ADAPTERS, plain(adapter(), 1))
        await made.by(DISTILL_JOBS, plain(job(), 2, status={"phase": "Queued", "observedGeneration": 1}))
        if has_lease:
            await made.index.leases.take(plain_lease(3))
        made.keys.clear()
        made.reconciler.resync()
        assert made.keys == {ADAPTER, wakes}


async def test_the_first_resync_comes_at_once() -> None:
    """Passes over Leases begin before all jobs are known, so one of them may have woken nobody."""
    async with woken() as made:
        await made.index.leases.take(plain_lease(1))
        made.keys.clear()
        task = asyncio.create_task(_resync(made.reconciler, period_seconds=3600))
        await asyncio.sleep(0)
        task.cancel()
        assert made.keys == {LEASE}


async def test_a_lease_is_looked_at_as_soon_as_it_is_known() -> None:
    async with woken() as made:
        found = plain_lease(1)
        await made.index.leases.take(found)
        assert made.keys == {LEASE}
        made.keys.clear()
        await made.index.leases.take(plain_lease(2))
        assert made.keys == set()


def plain_lease(version: int) -> Manifest:
    return lease_manifest(lease(grant()).model_copy(update={"resource_version": str(version)}))


async def test_an_unfinished_jobs_change_wakes_it_and_so_do_its_trainers() -> None:
    async with woken() as made:
        assert await made.by(DISTILL_JOBS, plain(job(), 1)) == {JOB}
        assert await made.by(BATCH_JOBS, child(1, ended=False, retired=False)) == {JOB}
        assert await made.by(PODS, child(1, ended=False, retired=False)) == {JOB}
        made.keys.clear()
        made.index.trainer_pods.drop(NAMESPACE, "step-1", "2")
        assert made.keys == {JOB}


FINISHED: Manifest = {
    "phase": "Succeeded",
    "observedGeneration": 1,
    "conditions": [
        {
            "type": "Complete",
            "status": "True",
            "reason": "Completed",
            "message": "",
            "lastTransitionTime": "2026-05-04T12:00:00Z",
        }
    ],
}


@pytest.mark.parametrize(
    ("ended", "retired", "wakes"),
    [(True, True, False), (True, False, True), (False, True, True), (False, False, True)],
)
async def test_a_finished_jobs_trainer_is_looked_at_only_while_it_may_run_or_was_not_let_go(
    ended: bool, retired: bool, wakes: bool
) -> None:
    async with woken() as made:
        assert await made.by(DISTILL_JOBS, plain(job(), 1, status=FINISHED)) == set()
        assert bool(await made.by(BATCH_JOBS, child(1, ended=ended, retired=retired))) is wakes


def vllm_pod(ready: bool, *, restarts: int = 0) -> Manifest:
    conditions: list[JsonValue] = [{"type": "Ready", "status": str(ready)}]
    statuses: list[JsonValue] = [{"name": "vllm", "restartCount": restarts}]
    return {
        "metadata": {"name": "vllm-0", "labels": {"app": "vllm"}},
        "status": {"phase": "Running", "conditions": conditions, "containerStatuses": statuses},
    }


async def test_a_served_deployment_is_followed_with_its_pods_as_long_as_an_adapter_names_it() -> None:
    small = SmallApi()
    small.put(ADAPTERS, NAMESPACE, plain(adapter(), 1))
    spec: Manifest = {"selector": {"matchLabels": {"app": "vllm"}}}
    small.put(DEPLOYMENTS, NAMESPACE, {"metadata": {"name": "vllm"}, "spec": spec})
    small.put(DEPLOYMENTS, NAMESPACE, {"metadata": {"name": "other"}, "spec": spec})
    small.put(PODS, NAMESPACE, vllm_pod(ready=False))
    async with serving_api(small) as api, watching(api) as (_, index):
        changes: list[str] = []
        index.deployment_changed = lambda namespace, name: changes.append(name)
        served = index.served(NAMESPACE, "vllm")
        assert served is not None
        assert index.served(NAMESPACE, "other") is None
        await small.until(lambda: bool(served.pods("app=vllm")))
        changes.clear()
        small.put(PODS, NAMESPACE, vllm_pod(ready=False, restarts=1))
        small.put(PODS, NAMESPACE, vllm_pod(ready=True))
        await small.until(lambda: bool(changes))
        assert changes == ["vllm"], "what does not change whether it can serve wakes nobody"
        assert [pod.ready for pod in served.pods("app=vllm") or ()] == [True]
        assert served.pods("app=else") is None
        small.remove(ADAPTERS, NAMESPACE, "tone")
        await small.until(lambda: index.served(NAMESPACE, "vllm") is None)


async def test_a_change_of_a_served_deployment_that_no_watch_told_is_found_by_comparing() -> None:
    small = SmallApi()
    small.put(ADAPTERS, NAMESPACE, plain(adapter(), 1))
    spec: Manifest = {"selector": {"matchLabels": {"app": "vllm"}}}
    small.put(DEPLOYMENTS, NAMESPACE, {"metadata": {"name": "vllm"}, "spec": spec})
    small.put(PODS, NAMESPACE, vllm_pod(ready=True))
    async with serving_api(small) as api, watching(api) as (_, index):
        served = index.served(NAMESPACE, "vllm")
        assert served is not None
        await small.until(lambda: bool(served.pods("app=vllm")))
        del small.objects[PODS.path(NAMESPACE, "vllm-0")]
        await index.compare()
        assert served.pods("app=vllm") == []
        del small.objects[DEPLOYMENTS.path(NAMESPACE, "vllm")]
        await index.compare()
        assert served.deployment is None


async def test_a_deployment_wakes_its_adapters_and_its_lease() -> None:
    async with woken() as made:
        await made.by(ADAPTERS, plain(adapter(), 1))
        await made.by(ADAPTERS, plain(adapter("style"), 2))
        made.keys.clear()
        made.index.deployment_changed(NAMESPACE, "vllm")
        assert made.keys == {ADAPTER, Key(Kind.ADAPTER, NAMESPACE, "style"), LEASE}
        made.keys.clear()
        made.index.deployment_changed(NAMESPACE, "other")
        assert made.keys == set()
