"""The peer as the program that runs in a pod, and its orders over HTTP."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import tinker

pytestmark = pytest.mark.contract

KEY = "tml-of-the-program"
NAME = "acme/tiny"


@pytest.fixture(scope="module")
def url(model_folder: Path) -> Iterator[str]:
    program = [sys.executable, "-m", "tests.peers.tinker", "--model", str(model_folder), "--port", "0"]
    path = os.pathsep.join([str(Path(__file__).parents[3]), *sys.path])
    process = subprocess.Popen(
        [*program, "--model-name", NAME, "--api-key", KEY],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        assert process.wait(timeout=20) == 0


def capabilities(url: str) -> list[str | None]:
    found = tinker.RestClient(base_url=url, api_key=KEY).get_server_capabilities().result(timeout=20)
    return [model.model_name for model in found.supported_models]


def test_it_serves_the_model_by_its_name_to_those_with_the_key(url: str) -> None:
    assert httpx.get(f"{url}/api/v1/healthz").json() == {"status": "ok"}
    assert capabilities(url) == [NAME]
    with pytest.raises(tinker.AuthenticationError):
        tinker.RestClient(base_url=url, api_key="tml-other")


def test_orders_over_http_make_calls_fail_and_tell_of_them(url: str) -> None:
    refused = {"at": ["get_server_capabilities"], "effect": {"kind": "answer", "status": 403}}
    httpx.post(f"{url}/peer/failures", json=refused).raise_for_status()
    with pytest.raises(tinker.PermissionDeniedError):
        capabilities(url)
    httpx.delete(f"{url}/peer/failures").raise_for_status()
    assert capabilities(url) == [NAME]
    told = [call for call in httpx.get(f"{url}/peer/calls").json() if call["operation"] == "get_server_capabilities"]
    assert [call["status"] for call in told[-2:]] == [403, 200]
    assert httpx.post(f"{url}/peer/failures", json={"at": ["no such"]}).status_code == 422


def test_it_comes_back_after_a_cut(url: str) -> None:
    gone = {"at": ["get_server_capabilities"], "effect": {"kind": "cut", "seconds": 0.3}, "times": 1}
    httpx.post(f"{url}/peer/failures", json=gone).raise_for_status()
    assert capabilities(url) == [NAME]


def test_a_retired_model_is_listed_no_more(url: str) -> None:
    httpx.post(f"{url}/peer/settings", json={"retire": NAME}).raise_for_status()
    assert capabilities(url) == []
