"""Carrying a plan out: in order, up to the first write that is refused, and nothing but what was decided on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import pytest
from kubernetes.aio import client

from claas_crds.v1alpha1.conditions import condition_of
from claas_kube.api import Api, Verb
from claas_kube.errors import ApiError, Conflict
from claas_kube.objects.meta import Manifest
from claas_kube.resources import LEASES, Resource
from claas_operator.act.apply import Applier
from claas_operator.act.proxy import ProxyMaker
from claas_operator.clients.companion_source import CompanionSource
from claas_operator.clients.modal.apps import ModalApps
from claas_operator.clients.modal.service import platform
from claas_operator.clients.proxies import Proxies
from claas_operator.clients.reader import Reader
from claas_operator.clients.steps_elsewhere import StepsElsewhere
from claas_operator.loop.reconcile import CONFLICT_SECONDS
from claas_operator.metrics.counts import Metrics
from claas_operator.plan import actions, naming
from claas_operator.plan.job_draft import end
from claas_operator.plan.world import TrainerState
from claas_operator.settings import Settings
from tests.builders.world import NAMESPACE, adapter, attempt, grant, job, lease, trainer_pod
from tests.unit.operator.act.test_pass_failures import JOB, cluster, refuses

SECRET: Manifest = {
    "metadata": {"name": "input", "namespace": NAMESPACE, "uid": "uid-of-input", "labels": {**naming.TRAINER_LABELS}}
}


class Server(Api):
    """The API server's side of each request: what was asked for, answered with a status."""

    def __init__(self, statuses: Mapping[str, int] | None = None, secret: Manifest | None = None) -> None:
        super().__init__(cast(client.ApiClient, None))
        self.statuses = statuses or {}
        self.secret = secret
        self.asked: list[tuple[str, str]] = []
        self.preconditions: dict[str, object] = {}

    async def _request(
        self,
        verb: Verb,
        resource: Resource,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Manifest | None = None,
        content: str = "application/json",
        accept: str = "application/json",
        subresource: str | None = None,
    ) -> Manifest:
        method = verb.method
        self.asked.append((method, path.rsplit("/", 2)[-2] if method != "POST" else path.rsplit("/", 1)[-1]))
        if method == "DELETE" and body is not None:
            self.preconditions[path.rsplit("/", 2)[-2]] = body.get("preconditions")
        status = self.statuses.get(method, 200)
        if status != 200:
            raise (Conflict if status == 409 else ApiError)(status, f"{method} {path}", "refused")
        if method == "GET":
            if self.secret is None:
                raise ApiError(404, path, "not found")
            return self.secret
        return {"metadata": {}}


def applier(server: Server) -> Applier:
    settings = Settings.from_environment({"CLAAS_TRAINER_IMAGE": "trainer"})
    read = Reader(server)
    maker = ProxyMaker(server, read, Proxies(read), settings)
    modal = ModalApps(platform(read, None))
    return Applier(server, read, CompanionSource({}), settings, Metrics(), maker, StepsElsewhere(read, 1), modal)


async def test_nothing_of_a_plan_is_done_after_a_lease_that_was_written_by_somebody_else() -> None:
    server = Server({"PUT": 409})
    plan = (actions.WriteLease(lease(grant())), actions.KillTrainer(trainer_pod("t")))
    with pytest.raises(Conflict):
        await applier(server).for_lease(NAMESPACE, plan)
    assert server.asked == [("PUT", "leases")]


async def test_a_lease_that_somebody_else_made_meanwhile_ends_the_plan_too() -> None:
    server = Server({"POST": 409})
    new = lease().model_copy(update={"resource_version": None})
    with pytest.raises(Conflict):
        await applier(server).for_lease(NAMESPACE, (actions.WriteLease(new), actions.KillTrainer(trainer_pod("t"))))
    assert server.asked == [("POST", "leases")]


async def test_every_deletion_names_the_object_that_it_was_decided_on() -> None:
    server = Server(secret=SECRET)
    await applier(server).for_lease(
        NAMESPACE,
        (
            actions.KillTrainer(trainer_pod("t")),
            end(attempt(TrainerState.LOST), 1, "why"),
            actions.DeleteLease(lease().model_copy(update={"uid": "uid-of-lease"})),
        ),
    )
    assert server.preconditions == {
        "pods": {"uid": "uid-of-t"},
        "jobs": {"uid": attempt(TrainerState.LOST).uid},
        "secrets": {"uid": "uid-of-input"},
        "leases": {"uid": "uid-of-lease", "resourceVersion": "7"},
    }


async def test_a_job_whose_time_is_over_is_deleted_only_as_it_was_seen() -> None:
    server = Server({"DELETE": 409})
    with pytest.raises(Conflict):
        await applier(server).for_job(job(), None, (actions.DeleteJob(),))
    assert server.preconditions == {"distilljobs": {"uid": "uid-of-step", "resourceVersion": "1"}}


@pytest.mark.parametrize(
    "change", [{"generation": 2}, {"deletionTimestamp": "2026-05-04T12:00:00Z"}, {"uid": "other"}]
)
async def test_no_attempt_is_made_of_a_job_that_changed_after_it_was_decided(change: Manifest) -> None:
    found: Manifest = job().model_dump(mode="json", by_alias=True, exclude_none=True)
    metadata = cast(Manifest, found["metadata"])
    server = Server(secret={**found, "metadata": {**metadata, **change}})
    plan = (actions.CreateAttempt("step-1", grant(), 0),)
    with pytest.raises(Conflict):
        await applier(server).for_job(job(), adapter(), plan)
    assert [method for method, _ in server.asked] == ["GET"]


async def test_a_secret_of_somebody_else_is_not_deleted() -> None:
    server = Server(secret={"metadata": {"name": "input", "namespace": NAMESPACE, "uid": "u", "labels": {}}})
    await applier(server).for_lease(NAMESPACE, (actions.RetireAttempt("input", 1),))
    assert server.preconditions == {}


@pytest.mark.parametrize("status", [404, 409])
async def test_what_is_gone_or_another_one_by_now_need_not_be_deleted(status: int) -> None:
    server = Server({"DELETE": status})
    await applier(server).for_lease(NAMESPACE, (actions.KillTrainer(trainer_pod("t")),))
    assert len(server.asked) == 1


async def test_a_pass_that_met_a_conflict_is_repeated_soon_and_no_fault_is_told() -> None:
    async with cluster(refuses("POST", LEASES, (409, "the lease exists by now", "AlreadyExists"))) as made:
        assert await made.reconciler.reconcile(JOB) == CONFLICT_SECONDS
        assert condition_of(made.job().status.conditions, "Failed") is None
        assert made.job().status.conditions == []
        assert not any("batch" in path for method, path in made.small.asked if method == "POST")
