"""Whatever a pass fails of, the object's status says so: a refusal by the API server, an object that can't be read, a
fault of the operator."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import cast

import pytest
from aiohttp import web
from pydantic import JsonValue

from claas_crds.v1alpha1.conditions import Condition, condition_of
from claas_crds.v1alpha1.distill_job import CompletionPoint, DistillJobStatus
from claas_kube.errors import ApiError, Unavailable
from claas_kube.objects.meta import Manifest
from claas_kube.objects.resources import AdapterObject, JobObject
from claas_kube.resources import ADAPTERS, BATCH_JOBS, CLAIMS, DEPLOYMENTS, DISTILL_JOBS, LEASES, SECRETS, Resource
from claas_operator.act.pass_failures import job_status, refused_step, trouble_of
from claas_operator.keys import Key, Kind
from claas_operator.loop.reconcile import Reconciler
from claas_operator.plan.job.job import plan_job
from tests.builders.api_server import Refuse, SmallApi, refusal, serving_api
from tests.builders.reconciler import reconciler_of
from tests.builders.world import NAMESPACE, NOW, ago, condition, grant, job_world, lease
from tests.builders.world import adapter as adapter_object
from tests.builders.world import job as job_object

TEXT = "xyzzy-feedback-of-a-user"
WRONG_MOUNT = 'Job.batch "step-1" is invalid: spec.template.spec.containers[0].volumeMounts[5].name: Not found: "x"'
JOB = Key(Kind.JOB, NAMESPACE, "step")
ADAPTER = Key(Kind.ADAPTER, NAMESPACE, "tone")


@dataclass
class Cluster:
    small: SmallApi
    reconciler: Reconciler

    async def passes(self, *keys: Key) -> None:
        """Passes as the queue runs them: one that raises is somebody else's to repeat."""
        for key in keys:
            with contextlib.suppress(Exception):
                await self.reconciler.reconcile(key)

    def job(self) -> JobObject:
        return JobObject.model_validate(self.small.found(DISTILL_JOBS, NAMESPACE, "step"))

    def adapter(self) -> AdapterObject:
        return AdapterObject.model_validate(self.small.found(ADAPTERS, NAMESPACE, "tone"))


def refuses(method: str, resource: Resource, answer: tuple[int, str, str]) -> Refuse:
    collection = resource.path(NAMESPACE)

    def refuse(asked: str, path: str) -> web.Response | None:
        return refusal(*answer) if asked == method and path.startswith(collection) else None

    return refuse


@asynccontextmanager
async def cluster(refuse: Refuse | None = None, **changes: Manifest) -> AsyncIterator[Cluster]:
    """An adapter with a version, whose Deployment has no pods, and a job."""
    small = SmallApi(refuse or (lambda method, path: None))
    for resource, found in (
        (ADAPTERS, adapter_object(serving={"handover": "None"})),
        (DISTILL_JOBS, job_object(complete_when=CompletionPoint.PUBLISHED)),
    ):
        plain = found.model_dump(mode="json", by_alias=True, exclude_none=True)
        small.put(resource, NAMESPACE, {**plain, **changes.get(resource.plural, {})})
    selector: Manifest = {"matchLabels": {"app": "vllm"}}
    small.put(DEPLOYMENTS, NAMESPACE, {"metadata": {"name": "vllm"}, "spec": {"selector": selector, "replicas": 0}})
    small.put(CLAIMS, NAMESPACE, {"metadata": {"name": "adapters"}})
    async with serving_api(small) as api:
        yield Cluster(small, reconciler_of(api))


def said(conditions: list[Condition], kind: str) -> tuple[str, str, str]:
    found = condition_of(conditions, kind)
    assert found is not None, f"no condition {kind}"
    return found.status.value, found.reason, found.message


REFUSALS = [
    (BATCH_JOBS, (422, WRONG_MOUNT, "Invalid"), 'volumeMounts[5].name: Not found: "x"'),
    (BATCH_JOBS, (403, 'jobs.batch "a" is forbidden: exceeded quota: few', "Forbidden"), "exceeded quota: few"),
    (BATCH_JOBS, (500, 'failed calling webhook "w.example.com": no endpoints', "InternalError"), "no endpoints"),
    (BATCH_JOBS, (400, 'admission webhook "w.example.com" denied the request: unsigned', "BadRequest"), "unsigned"),
    (SECRETS, (403, f'secrets "a" is forbidden: {TEXT}', "Forbidden"), "Forbidden"),
]


@pytest.mark.parametrize(("resource", "answer", "words"), REFUSALS, ids=[str(row[1][0]) for row in REFUSALS])
async def test_a_refused_trainer_is_told_in_the_servers_words_and_the_lease_goes_on(
    resource: Resource, answer: tuple[int, str, str], words: str
) -> None:
    method = "PATCH" if resource is SECRETS else "POST"
    async with cluster(refuses(method, resource, answer)) as made:
        await made.passes(JOB, JOB)
        job = made.job()
        status, reason, message = said(job.status.conditions, "Admitted")
        assert (status, reason) == ("False", "RequestRefused")
        assert words in message
        assert TEXT not in str(job.status)
        assert job.status.phase == "Pending"
        assert job.status.retry_time is not None
        known = made.reconciler.jobs.get(NAMESPACE, "step")
        assert known is not None
        assert not known.queued, "it holds up nobody else"
        # The Lease is let go, and the job does not take it again before its time.
        await made.passes(Key(Kind.LEASE, NAMESPACE, "claas-serving-vllm"), JOB, JOB)
        held = made.small.found(LEASES, NAMESPACE, "claas-serving-vllm")["spec"]
        assert held == {**cast(dict[str, JsonValue], held), "holderIdentity": ""}
        assert said(made.job().status.conditions, "Admitted")[1] == "RequestRefused"


async def test_the_step_is_taken_once_the_refusal_is_over() -> None:
    async with cluster(refuses("POST", BATCH_JOBS, (422, WRONG_MOUNT, "Invalid"))) as made:
        await made.passes(JOB, JOB, Key(Kind.LEASE, NAMESPACE, "claas-serving-vllm"))
        made.small.refuse = lambda method, path: None
        past: Manifest = {"status": {"retryTime": ago(1).isoformat()}}
        status = cast(Manifest, made.small.found(DISTILL_JOBS, NAMESPACE, "step")["status"])
        made.small.put(
            DISTILL_JOBS,
            NAMESPACE,
            {
                **made.small.found(DISTILL_JOBS, NAMESPACE, "step"),
                "status": {**status, **cast(Manifest, past["status"])},
            },
        )
        await made.passes(JOB, JOB)
        assert said(made.job().status.conditions, "Admitted")[:2] == ("True", "Admitted")
        assert any("jobs/" in path and "batch" in path for path in made.small.objects)


async def test_a_refused_initial_version_stalls_the_adapter_in_the_servers_words() -> None:
    async with cluster(
        refuses("POST", BATCH_JOBS, (422, WRONG_MOUNT, "Invalid")), loraadapters={"status": {}}
    ) as made:
        await made.passes(ADAPTER)
        conditions = made.adapter().status.conditions
        for kind, status in (("Ready", "False"), ("Stalled", "True")):
            assert said(conditions, kind)[:2] == (status, "RequestRefused")
        assert WRONG_MOUNT in said(conditions, "Ready")[2]
        assert said(conditions, "Reconciling")[0] == "False"


async def test_telling_the_same_again_writes_nothing() -> None:
    async with cluster(
        refuses("POST", BATCH_JOBS, (422, WRONG_MOUNT, "Invalid")), loraadapters={"status": {}}
    ) as made:
        await made.passes(ADAPTER)
        made.small.counted()
        await made.passes(ADAPTER)
        assert not any("PATCH" in asked and "loraadapters" in asked for asked in made.small.counted())


UNREADABLE: list[tuple[str, Key, Manifest, str]] = [
    (
        "loraadapters",
        ADAPTER,
        {"spec": {"serving": {"deploymentRef": {"name": "vllm"}, "handover": "Dream"}}},
        "spec.",
    ),
    ("distilljobs", JOB, {"spec": {"adapterRef": {"name": "tone"}, "samples": {"inline": [{"u": TEXT}]}}}, "spec."),
    ("distilljobs", JOB, {"status": {"phase": "Dreaming"}}, "status.phase"),
]


@pytest.mark.parametrize(("plural", "key", "change", "field"), UNREADABLE)
async def test_an_object_that_this_release_can_not_read_has_a_status_that_names_the_field(
    plural: str, key: Key, change: Manifest, field: str
) -> None:
    async with cluster(None, **{plural: {"status": {}, **change}}) as made:
        await made.passes(key)
        resource = ADAPTERS if key is ADAPTER else DISTILL_JOBS
        status = made.small.found(resource, NAMESPACE, key.name)["status"]
        assert isinstance(status, dict)
        told = str(status["conditions"])
        assert "ReconcileFailed" in told
        assert field in told
        assert TEXT not in told


async def test_a_queued_job_that_can_not_be_read_holds_up_nobody_else() -> None:
    spec: Manifest = {"adapterRef": {"name": "tone"}, "samples": {"inline": [{"unknown": TEXT}]}}
    async with cluster(None, distilljobs={"spec": spec, "status": {"phase": "Queued"}}) as made:
        await made.passes(JOB)
        await made.reconciler.jobs.take(made.small.found(DISTILL_JOBS, NAMESPACE, "step"))
        known = made.reconciler.jobs.get(NAMESPACE, "step")
        assert known is None or not known.queued


async def test_a_fault_of_the_operator_is_told_by_type_and_place_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster() as made:

        async def broken(*_: object) -> None:
            raise KeyError(TEXT)

        monkeypatch.setattr(made.reconciler._observer, "job_world", broken)
        monkeypatch.setattr(made.reconciler._observer, "adapter_world", broken)
        await made.passes(JOB, ADAPTER)
        for conditions, kind in (
            (made.job().status.conditions, "Admitted"),
            (made.adapter().status.conditions, "Ready"),
        ):
            status, reason, message = said(conditions, kind)
            assert reason == "ReconcileFailed"
            assert status != "True"
            assert "KeyError at test_pass_failures.py" in message
            assert TEXT not in message


async def test_an_object_that_is_deleted_in_mid_pass_is_no_failure() -> None:
    async with cluster() as made:
        small = made.small

        def vanish(method: str, path: str) -> web.Response | None:
            if path == DEPLOYMENTS.path(NAMESPACE, "vllm"):
                small.objects.pop(ADAPTERS.path(NAMESPACE, "tone"), None)
            return None

        small.refuse = vanish
        assert await made.reconciler.reconcile(ADAPTER) == 0.0
        assert await made.reconciler.reconcile(ADAPTER) is None


async def test_a_lease_whose_job_can_not_be_read_is_let_go() -> None:
    async with cluster(distilljobs={"status": {"phase": "Dreaming"}}) as made:
        held = lease(grant(pods=())).model_copy(update={"resource_version": None})
        await made.reconciler._applier._write_lease(held)
        await made.passes(Key(Kind.LEASE, NAMESPACE, held.name))
        spec = made.small.found(LEASES, NAMESPACE, held.name)["spec"]
        assert isinstance(spec, dict)
        assert spec["holderIdentity"] == ""


async def test_an_outage_of_a_moment_leaves_no_trace_and_one_that_lasts_does() -> None:
    async with cluster(refuses("GET", DEPLOYMENTS, (503, "down", "ServiceUnavailable"))) as made:
        await made.passes(ADAPTER)
        assert condition_of(made.adapter().status.conditions, "Ready") is None
        made.reconciler.queue._failures[ADAPTER] = 2
        await made.passes(ADAPTER)
        assert said(made.adapter().status.conditions, "Ready")[:2] == ("Unknown", "ReconcileFailed")


@pytest.mark.parametrize(("tried", "wait"), [(0.0, 5.0), (20.0, 10.0), (1000.0, 300.0)])
def test_a_refused_step_waits_half_as_long_as_it_has_tried(tried: float, wait: float) -> None:
    status = refused_step(DistillJobStatus(start_time=ago(tried)), 1, ApiError(422, "POST", "no"), NOW)
    assert status.retry_time is not None
    assert (status.retry_time - NOW).total_seconds() == wait
    # Whoever has the Lease: it is let go, and not taken again before that.
    assert plan_job(job_world(job_object(status=status), held=lease(grant()))).actions == ()
    plan = plan_job(job_world(job_object(status=status), held=lease()))
    assert plan.actions == ()
    assert plan.requeue_seconds == wait


def test_a_job_whose_step_was_refused_until_its_deadline_ends_with_the_servers_words() -> None:
    status = refused_step(DistillJobStatus(start_time=ago(120)), 1, ApiError(422, "POST", "spec.x: wrong"), NOW)
    plan = plan_job(job_world(job_object(status=status, deadline_seconds=60), held=lease()))
    status_of_it, reason, message = said(plan.status.conditions, "Failed")
    assert (status_of_it, reason) == ("True", "DeadlineExceeded")
    assert "spec.x: wrong" in message


def test_a_published_version_that_is_refused_its_end_says_so_of_its_service() -> None:
    found: Manifest = {
        "metadata": {"name": "step", "generation": 1},
        "status": {"conditions": [condition("Trained", True).model_dump(mode="json", by_alias=True)]},
    }
    trouble = trouble_of(Unavailable(503, "GET /x", "down"))
    conditions = cast("list[dict[str, str]]", job_status(found, trouble, NOW)["conditions"])
    assert [(each["type"], each["status"]) for each in conditions] == [("Trained", "True"), ("Served", "False")]
