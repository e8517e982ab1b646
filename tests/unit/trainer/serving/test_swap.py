"""What becomes of a published version that a server does not take."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from claas_contract.outcome import ExitCode, FailureReason
from claas_contract.result import PublishedVersion
from claas_trainer.errors import VersionRejectedError
from claas_trainer.messages.result import exit_code, failure
from claas_trainer.paths import Paths
from claas_trainer.serving.pods import connect
from claas_trainer.serving.swap import swap
from tests.unit.trainer.conftest import document
from tests.unit.trainer.sleeping_server import SleepingServer, sleeping_server

VERSION = PublishedVersion(number=3, path="a/versions/3", digest="d", created=datetime(2026, 1, 1, tzinfo=UTC))


async def put_in_service(server: SleepingServer, paths: Paths) -> list[str]:
    serving = document(server.url).serving
    assert serving is not None
    async with connect(serving, paths) as pods:
        return await swap(pods, serving, VERSION)


async def test_a_version_that_the_server_refuses_is_a_permanent_failure_that_names_it(paths: Paths) -> None:
    with sleeping_server() as server, pytest.raises(VersionRejectedError) as caught:
        await put_in_service(server, paths)
    result = failure(caught.value)
    assert (result.reason, result.version) == (FailureReason.VERSION_REJECTED, VERSION)
    assert exit_code(result) is ExitCode.PERMANENT
    assert "vllm-0" in result.message


async def test_a_server_that_dies_over_a_load_has_not_refused_the_version(paths: Paths) -> None:
    with sleeping_server() as server:
        server.engine_dead = True
        assert await put_in_service(server, paths) == []
        assert "POST /v1/load_lora_adapter" in server.calls


async def test_nothing_is_loaded_into_a_server_that_sleeps(paths: Paths) -> None:
    with sleeping_server() as server:
        server.asleep = True
        assert await put_in_service(server, paths) == []
        assert "POST /v1/load_lora_adapter" not in server.calls


async def test_a_server_that_another_adapters_step_put_to_sleep_over_a_load_has_not_refused_the_version(
    paths: Paths,
) -> None:
    with sleeping_server() as server:
        server.sleeps_over_load = True
        assert await put_in_service(server, paths) == []
        assert "POST /v1/load_lora_adapter" in server.calls
