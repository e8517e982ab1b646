"""What passes read without a request, what own writes change at once, and what only the server's word decides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import pytest

from claas_crds.v1alpha1.engine import EngineName
from claas_kube.api import Api
from claas_kube.errors import ApiError, Conflict, Forbidden, Unavailable
from claas_kube.objects.meta import Manifest
from claas_kube.resources import ADAPTERS, BATCH_JOBS, CLAIMS, DEPLOYMENTS, DISTILL_JOBS, LEASES, PODS, Resource
from claas_operator.clients.cluster_index import ClusterIndex
from claas_operator.clients.companion_source import CompanionSource
from claas_operator.clients.job_view import JobView
from claas_operator.clients.modal.apps import ModalApps
from claas_operator.clients.modal.service import platform
from claas_operator.clients.proxies import Proxies
from claas_operator.clients.reader import Reader
from claas_operator.clients.steps_elsewhere import StepsElsewhere
from claas_operator.observe import lease_worlds
from claas_operator.observe.worlds import Observer
from claas_operator.plan import naming
from claas_operator.plan.engine.leases import StepLeases
from claas_operator.plan.serving_lease import ServingLease, lease_manifest, lease_name
from claas_operator.plan.world import RecordedPod
from tests.builders.api_server import SmallApi, refusal, serving_api
from tests.builders.world import ASLEEP, NAMESPACE, adapter, grant, job, lease, recorded

HELD = lease(grant()).model_copy(update={"resource_version": None})


@dataclass
class Cluster:
    server: SmallApi
    api: Api
    index: ClusterIndex
    read: Reader

    @property
    def observer(self) -> Observer:
        leases, steps = StepLeases(EngineName.LOCAL), StepsElsewhere(self.read, 1)
        modal = ModalApps(platform(self.read, None))
        return Observer(self.read, self.index.jobs, CompanionSource({}), Proxies(self.read), leases, steps, modal)

    def deaf(self) -> None:
        """From now on no event reaches the index."""
        self.server.watchers.clear()


def plain(found: object) -> Manifest:
    dumped: Manifest = found.model_dump(mode="json", by_alias=True, exclude_none=True)  # type: ignore[attr-defined]
    return dumped


def trainer(kind: Resource, name: str, labels: dict[str, str] | None = None) -> Manifest:
    found: Manifest = {
        "metadata": {
            "name": name,
            "labels": {**naming.TRAINER_LABELS, naming.JOB_UID_LABEL: "uid-of-step", **(labels or {})},
        }
    }
    return found if kind is BATCH_JOBS else {**found, "status": {"phase": "Running"}}


@asynccontextmanager
async def cluster(server: SmallApi | None = None) -> AsyncIterator[Cluster]:
    """The adapter `tone` on the Deployment `vllm`, its job `step` with a trainer, and an index that follows them."""
    server = server or SmallApi()
    server.put(ADAPTERS, NAMESPACE, plain(adapter()))
    server.put(DISTILL_JOBS, NAMESPACE, plain(job()))
    spec: Manifest = {"selector": {"matchLabels": {"app": "vllm"}}}
    server.put(DEPLOYMENTS, NAMESPACE, {"metadata": {"name": "vllm"}, "spec": spec})
    server.put(PODS, NAMESPACE, {"metadata": {"name": "vllm-0", "labels": {"app": "vllm"}}})
    server.put(BATCH_JOBS, NAMESPACE, trainer(BATCH_JOBS, "step-1"))
    server.put(PODS, NAMESPACE, trainer(PODS, "step-1-x", {"batch.kubernetes.io/job-name": "step-1"}))
    server.put(LEASES, NAMESPACE, lease_manifest(HELD))
    async with serving_api(server) as api:
        index = ClusterIndex(api, JobView(), (None,))
        api.keep_informed(index)
        running = asyncio.create_task(index.run())
        try:
            await index.ready()
            served = index.served(NAMESPACE, "vllm")
            assert served is not None
            await server.until(lambda: served.pods("app=vllm") is not None)
            # Every kind is followed, the Deployment and its pods too.
            await server.until(lambda: len(server.watchers) == 7)
            server.asked.clear()
            yield Cluster(server, api, index, Reader(api, index))
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def test_what_is_watched_is_read_without_a_request() -> None:
    async with cluster() as made:
        read = made.read
        assert await read.adapter_object(NAMESPACE, "tone") is not None
        assert len(await read.adapters_of(NAMESPACE, "vllm")) == 1
        known = await read.known_job(NAMESPACE, "step")
        assert known is not None
        assert known.spec.samples.inline is None
        held = await read.lease(NAMESPACE, "vllm")
        assert held is not None
        assert held.grant == HELD.grant
        assert await read.lease_named(NAMESPACE, lease_name("vllm")) == held
        assert len(await read.leases(NAMESPACE)) == 1
        deployment = await read.deployment(NAMESPACE, "vllm")
        assert [pod.metadata.name for pod in await read.deployment_pods(NAMESPACE, deployment)] == ["vllm-0"]
        assert await read.pod(NAMESPACE, "vllm-0") is not None
        assert await read.pod(NAMESPACE, "step-1-x") is not None
        assert await read.batch_job(NAMESPACE, "step-1") is not None
        assert [pod.metadata.name for pod in await read.batch_job_pods(NAMESPACE, "step-1")] == ["step-1-x"]
        assert [pod.metadata.name for pod in await read.trainer_pods(NAMESPACE, "uid-of-step")] == ["step-1-x"]
        assert await read.attempts_open(NAMESPACE, "uid-of-step")
        for missing in (
            await read.adapter_object(NAMESPACE, "none"),
            await read.known_job(NAMESPACE, "none"),
            await read.lease(NAMESPACE, "none"),
            await read.batch_job(NAMESPACE, "none"),
        ):
            assert missing is None
        assert made.server.asked == []


async def test_what_is_not_watched_is_asked_of_the_server() -> None:
    async with cluster() as made:
        assert not await made.read.claim_found(NAMESPACE, "adapters")
        assert await made.read.deployment(NAMESPACE, "somebodys") is None
        assert await made.read.pod(NAMESPACE, "somebodys-0") is None
        assert made.server.asked == [
            ("GET", CLAIMS.path(NAMESPACE, "adapters")),
            ("GET", DEPLOYMENTS.path(NAMESPACE, "somebodys")),
            ("GET", PODS.path(NAMESPACE, "somebodys-0")),
        ]


async def test_own_writes_are_read_at_once() -> None:
    async with cluster() as made:
        made.deaf()
        await made.api.create(BATCH_JOBS, NAMESPACE, trainer(BATCH_JOBS, "step-2"))
        assert made.index.batch_jobs.get(NAMESPACE, "step-2") is not None
        held = made.index.serving_lease(NAMESPACE, lease_name("vllm"))
        assert held is not None
        released = lease_manifest(held.model_copy(update={"grant": None}))
        await made.api.replace(LEASES, NAMESPACE, held.name, released)
        known = made.index.serving_lease(NAMESPACE, held.name)
        assert known is not None
        assert known.grant is None
        status: Manifest = {"status": {"latestVersion": 7}}
        await made.api.merge(ADAPTERS, NAMESPACE, "tone", status, subresource="status")
        told = made.index.adapters.get(NAMESPACE, "tone")
        assert told is not None
        assert told.status.latest_version == 7


async def test_what_is_not_ours_is_not_taken_for_ours() -> None:
    async with cluster() as made:
        await made.api.create(LEASES, NAMESPACE, {"metadata": {"name": "claas-operator"}, "spec": {}})
        await made.api.create(BATCH_JOBS, NAMESPACE, {"metadata": {"name": "theirs"}})
        assert made.index.leases.get(NAMESPACE, "claas-operator") is None
        assert made.index.batch_jobs.get(NAMESPACE, "theirs") is None


async def test_a_write_that_meets_a_conflict_has_its_object_read_anew() -> None:
    async with cluster() as made:
        made.deaf()
        stale = made.index.serving_lease(NAMESPACE, lease_name("vllm"))
        assert stale is not None
        other = HELD.model_copy(update={"grant": grant("another")})
        made.server.put(LEASES, NAMESPACE, {**lease_manifest(other)})
        with pytest.raises(Conflict):
            await made.api.replace(LEASES, NAMESPACE, stale.name, lease_manifest(stale))
        known = made.index.serving_lease(NAMESPACE, stale.name)
        assert known is not None
        assert known.holder == "uid-of-another"


async def test_a_write_to_an_object_that_is_gone_makes_it_unknown_though_no_event_tells_so() -> None:
    """A watch may be behind by minutes, and the pass over such an object would be repeated at once, for ever."""
    async with cluster() as made:
        del made.server.objects[DISTILL_JOBS.path(NAMESPACE, "step")]
        with pytest.raises(ApiError):
            await made.api.merge(DISTILL_JOBS, NAMESPACE, "step", {"status": {}}, "status", metadata_only=True)
        assert made.index.jobs.get(NAMESPACE, "step") is None


async def test_that_no_trainer_lives_is_asked_of_the_server_before_a_lease_is_let_go() -> None:
    """A pod of which no event has come yet must not be there when serving is woken."""
    async with cluster() as made:
        server = made.server
        server.remove(DISTILL_JOBS, NAMESPACE, "step")
        await server.until(lambda: made.index.jobs.get(NAMESPACE, "step") is None)
        server.remove(BATCH_JOBS, NAMESPACE, "step-1")
        server.remove(PODS, NAMESPACE, "step-1-x")
        await server.until(
            lambda: (
                not made.index.trainer_pods.grouped(NAMESPACE, "uid-of-step")
                and not made.index.batch_jobs.grouped(NAMESPACE, "uid-of-step")
            )
        )
        made.deaf()
        server.put(PODS, NAMESPACE, trainer(PODS, "step-1-late"))
        held = made.index.serving_lease(NAMESPACE, lease_name("vllm"))
        assert held is not None
        observer = made.observer
        world = await observer.leases.lease_world(held)
        assert [pod.name for pod in world.alive_pods] == ["step-1-late"]


@pytest.mark.parametrize("open_", [True, False])
async def test_a_vllm_that_sleeps_is_woken_on_the_servers_word_even_while_a_batch_job_is_open(
    open_: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer that put it to sleep may be one of which the index has not heard yet."""

    async def asleep(*_: object) -> tuple[RecordedPod, ...]:
        return (recorded(server=ASLEEP),)

    monkeypatch.setattr(lease_worlds, "recorded_pods", asleep)
    async with cluster() as made:
        server = made.server
        server.remove(PODS, NAMESPACE, "step-1-x")
        if not open_:
            server.remove(BATCH_JOBS, NAMESPACE, "step-1")
        await server.until(lambda: not made.index.trainer_pods.grouped(NAMESPACE, "uid-of-step"))
        made.deaf()
        server.put(PODS, NAMESPACE, trainer(PODS, "step-1-late"))
        held = made.index.leases.get(NAMESPACE, lease_name("vllm"))
        assert isinstance(held, ServingLease)
        world = await made.observer.leases.lease_world(held)
        assert [pod.name for pod in world.alive_pods] == ["step-1-late"]


async def test_a_running_trainer_and_a_lease_that_is_needed_are_believed_without_asking() -> None:
    async with cluster() as made:
        held = made.index.leases.get(NAMESPACE, lease_name("vllm"))
        assert isinstance(held, ServingLease)
        await made.observer.leases.lease_world(held)
        assert not [path for _, path in made.server.asked if path.endswith(("/pods", "/jobs"))]


async def test_an_index_without_rights_says_so_and_one_that_waits_for_the_server_too() -> None:
    for status, kind in ((403, Forbidden), (503, Unavailable)):
        server = SmallApi(refuse=lambda method, path, status=status: refusal(status, "no"))  # type: ignore[misc]
        async with serving_api(server) as api:
            index = ClusterIndex(api, JobView(), (None,))
            running = asyncio.create_task(index.run())
            with pytest.raises(kind):
                await index.ready()
            assert not index.complete
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running


async def test_each_namespace_that_is_watched_has_watches_of_its_own() -> None:
    server = SmallApi()
    server.put(DISTILL_JOBS, NAMESPACE, plain(job()))
    server.put(DISTILL_JOBS, "theirs", plain(job()))
    async with serving_api(server) as api:
        index = ClusterIndex(api, JobView(), (NAMESPACE, "empty"))
        running = asyncio.create_task(index.run())
        await index.ready()
        assert [known.namespace for known in index.jobs.within(None)] == [NAMESPACE]
        assert all("/namespaces/" in path for _, path in server.asked)
        server.put(DISTILL_JOBS, "empty", plain(job()))
        await server.until(lambda: len(index.jobs.within(None)) == 2)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
