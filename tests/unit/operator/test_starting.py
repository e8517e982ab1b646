"""The operator's start on a cluster that is not ready for it yet."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from kubernetes.aio import client
from kubernetes.aio.leaderelection.leaderelectionrecord import LeaderElectionRecord

from claas_kube.errors import ApiError, Forbidden, Unavailable
from claas_operator import starting
from claas_operator.leader import LeaderLock
from claas_operator.starting import until_done

INITIALISING = Unavailable(429, "GET /apis/claas.dev", "storage is (re)initializing", 0.001)


class Work:
    """Raises what it is given, one after the other, and then succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.tries = 0

    async def __call__(self) -> None:
        self.tries += 1
        if self.errors:
            raise self.errors.pop(0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(starting, "LONGEST_PAUSE_SECONDS", 0.002)


async def test_an_api_server_that_can_not_answer_yet_is_waited_for_without_end() -> None:
    work = Work(*[INITIALISING] * 30)
    times = iter(range(0, 100_000, 1000))
    assert await until_done("the start", work, asyncio.Event(), clock=lambda: next(times))
    assert work.tries == 31


async def test_crds_and_rights_may_come_a_moment_later() -> None:
    work = Work(ApiError(404, "GET", "not found"), Forbidden(403, "GET", "forbidden"), INITIALISING)
    assert await until_done("the start", work, asyncio.Event())


async def test_rights_that_go_on_missing_end_the_operator() -> None:
    times = iter([0.0, 0.0, 59.0, 61.0])
    work = Work(*[Forbidden(403, "GET", "forbidden")] * 9)
    with pytest.raises(Forbidden):
        await until_done("the start", work, asyncio.Event(), clock=lambda: next(times))
    assert work.tries == 3


async def test_whoever_waits_for_the_api_server_can_be_told_to_stop() -> None:
    stop = asyncio.Event()
    work = Work(*[Unavailable(503, "GET", "down", 60.0)] * 9)
    asyncio.get_running_loop().call_later(0.02, stop.set)
    async with asyncio.timeout(5):
        assert not await until_done("the start", work, stop)


async def test_a_lost_connection_is_a_failed_try_at_the_leaders_lease_and_no_end_of_the_election() -> None:
    async with client.ApiClient(client.Configuration(host="http://127.0.0.1:9")) as api_client:
        lock = LeaderLock("claas-operator", "claas-system", "operator-0", api_client)
        found, why = await lock.get("claas-operator", "claas-system")
        assert not found
        assert "no answer" in str(getattr(why, "reason", ""))
        lock.lease_reference = client.V1Lease(spec=client.V1LeaseSpec())
        now = "2026-05-04 12:00:00.000000"
        record = LeaderElectionRecord("operator-0", "15", now, now)
        assert not await lock.update("claas-operator", "claas-system", record)
        with pytest.raises(aiohttp.ClientError):
            await super(LeaderLock, lock).get("claas-operator", "claas-system")
