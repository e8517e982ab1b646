"""What is read of a trainer: Events only when it does not run for some seconds and nothing else says why."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import cast

import pytest
from kubernetes.aio import client
from pydantic import JsonValue

from claas_kube.api import Api, Verb
from claas_kube.errors import ApiError, Forbidden
from claas_kube.objects.meta import Manifest
from claas_kube.resources import Resource
from claas_operator.clients.reader import Reader
from claas_operator.observe.attempt_reader import observe_attempt
from claas_operator.plan.world import TrainerState
from tests.builders.world import NAMESPACE, NOW

QUOTA = "exceeded quota: team-quota"
JOB: Manifest = {"metadata": {"name": "step-1", "uid": "uid-of-job", "creationTimestamp": NOW.isoformat()}}
POD: Manifest = {
    "metadata": {
        "name": "p",
        "uid": "uid-of-p",
        "ownerReferences": [{"kind": "Job", "name": "step-1", "uid": "uid-of-job"}],
    },
    "status": {"phase": "Pending", "containerStatuses": []},
}
EVENT: Manifest = {"metadata": {"name": "e"}, "type": "Warning", "reason": "FailedCreate", "message": QUOTA}


class Server(Api):
    """An API server with one batch Job, its pods and one Event; what was asked of Events is kept."""

    def __init__(self, pods: list[JsonValue], refused: int | None = None) -> None:
        super().__init__(cast(client.ApiClient, None))
        self.pods = pods
        self.refused = refused
        self.asked: list[str] = []

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
        if path.endswith("/events"):
            self.asked.append((query or {})["fieldSelector"])
            if self.refused is not None:
                raise (Forbidden if self.refused == 403 else ApiError)(self.refused, path, "refused")
            return {"items": [EVENT]}
        return {"items": self.pods} if path.endswith("/pods") else JOB


async def test_a_quota_is_read_from_the_jobs_events_once_no_pod_came_for_some_seconds() -> None:
    server = Server([])
    early = await observe_attempt(Reader(server), NAMESPACE, "step-1", NOW + timedelta(seconds=4))
    assert (early.hindered, server.asked) == (False, [])
    late = await observe_attempt(Reader(server), NAMESPACE, "step-1", NOW + timedelta(seconds=6))
    assert (late.hindered, late.message) == (True, f"FailedCreate: {QUOTA}")
    assert server.asked == ["involvedObject.uid=uid-of-job"]


async def test_of_a_pod_that_does_not_start_its_own_events_are_read() -> None:
    server = Server([POD])
    await observe_attempt(Reader(server), NAMESPACE, "step-1", NOW + timedelta(seconds=6))
    assert server.asked == ["involvedObject.uid=uid-of-p"]


async def test_a_role_without_the_right_to_events_keeps_no_trainer_from_running() -> None:
    attempt = await observe_attempt(Reader(Server([], 403)), NAMESPACE, "step-1", NOW + timedelta(seconds=6))
    assert (attempt.state, attempt.hindered) == (TrainerState.RUNNING, False)
    assert "RBAC" in attempt.message
    with pytest.raises(ApiError):
        await observe_attempt(Reader(Server([], 500)), NAMESPACE, "step-1", NOW + timedelta(seconds=6))
