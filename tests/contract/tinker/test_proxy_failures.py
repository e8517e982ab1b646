"""What clients are told while the service fails, and that the proxy comes back by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from tinker.types import RequestErrorCategory

from claas_vllm_client import RequestFailed, VllmClient
from tests.builders.models import build_tiny_qwen3
from tests.contract.tinker.proxy_server import SERVED_NAME, TOKEN, ProxyServer
from tests.contract.tinker.proxy_site import KEY, ProxySite
from tests.peers.tinker.calls import Operation
from tests.peers.tinker.failures import Answer, Effect, Fails, NeverComes
from tests.peers.tinker.server import TinkerPeer

pytestmark = pytest.mark.contract

Make = Callable[..., ProxySite]
PRIVATE = "a private question"
ASKED = {"model": SERVED_NAME, "messages": [{"role": "user", "content": PRIVATE}], "max_tokens": 4}


@pytest.fixture
def impatient(new_site: Make) -> ProxySite:
    """A ready proxy that waits for seconds only."""
    site = new_site(CLAAS_SERVICE_PATIENCE_SECONDS="2", CLAAS_REQUEST_TIMEOUT_SECONDS="5")
    site.publish(1)
    site.proxy.launch().wait_until_ready()
    return site


def ask(site: ProxySite, **changes: Any) -> httpx.Response:
    return httpx.post(f"{site.proxy.url}/v1/chat/completions", json={**ASKED, **changes}, timeout=60, trust_env=False)


FAULTS: dict[str, tuple[Operation, Effect, int, str]] = {
    "a refused key": (Operation.SAMPLE, Answer(401), 502, "CredentialsRefused"),
    "a forbidden one": (Operation.SAMPLE, Answer(403), 502, "CredentialsRefused"),
    "an unpaid bill": (Operation.SAMPLE, Answer(402), 503, "BillingRequired"),
    "a 429 storm": (Operation.SAMPLE, Answer(429), 429, "RateLimited"),
    "5xx for ever": (Operation.SAMPLE, Answer(500), 503, "ServiceUnreachable"),
    "5xx for ever for the result": (Operation.RETRIEVE, Answer(503), 503, "ServiceUnreachable"),
    "a result that never comes": (Operation.SAMPLE, NeverComes(), 503, "ServiceUnreachable"),
    "a refused request": (
        Operation.SAMPLE, Fails(RequestErrorCategory.User, "max_tokens is too large"), 400, "RequestRefused",
    ),
    "a failed request": (Operation.SAMPLE, Fails(RequestErrorCategory.Server), 503, "RequestFailed"),
}  # fmt: skip


def test_each_fault_is_told_by_its_status_in_time_and_passes(impatient: ProxySite) -> None:
    site = impatient
    for name, (operation, effect, status, fault) in FAULTS.items():
        rule = site.peer.fail(operation, effect)
        started = time.monotonic()
        answer = ask(site)
        assert time.monotonic() - started < 15, name
        assert answer.status_code == status, (name, answer.text)
        error = answer.json()["error"]
        assert error["message"].startswith(f"{fault}: "), name
        assert error["code"] == status
        assert ("retry-after" in answer.headers) is (status in (429, 503)), name
        assert PRIVATE not in answer.text
        assert KEY not in answer.text
        # The proxy lives on, and answers when the service does.
        assert httpx.get(f"{site.proxy.url}/health", trust_env=False).is_success
        rule.lift()
        site.peer.clear_failures()
        deadline = time.monotonic() + 30
        while not (again := ask(site)).is_success:
            assert time.monotonic() < deadline, (name, again.text)
            time.sleep(1)
    log = site.proxy.log.read_text()
    assert PRIVATE not in log
    assert KEY not in log


def test_a_service_that_is_gone_is_told_and_found_again(impatient: ProxySite) -> None:
    site = impatient
    site.peer.cut()
    try:
        answer = ask(site)
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "ServiceUnavailableError")
    finally:
        site.peer.come_back()
    deadline = time.monotonic() + 30
    while not (again := ask(site)).is_success:
        assert time.monotonic() < deadline, again.text
        time.sleep(1)


async def test_a_version_is_not_rejected_because_the_service_does_not_answer(impatient: ProxySite) -> None:
    site = impatient
    site.publish(2)
    site.peer.fail(Operation.CREATE_SAMPLER, Answer(503))
    async with VllmClient(site.proxy.url, control_token=TOKEN, timeout_seconds=60) as client:
        with pytest.raises(RequestFailed, match="503"):
            await client.load_adapter(f"{SERVED_NAME}@2", str(site.folder(2)))


def test_a_lost_session_is_opened_anew_and_no_request_fails(impatient: ProxySite) -> None:
    site = impatient
    time.sleep(5)  # Sessions are not opened more often than that.
    before = len(site.peer.called(Operation.CREATE_SESSION))
    for session in site.peer.state.sessions.values():
        session.finished = True
    assert ask(site).is_success
    assert len(site.peer.called(Operation.CREATE_SESSION)) == before + 1


def test_with_a_wrong_key_the_proxy_waits_for_the_right_one(tmp_path: Path) -> None:
    model = build_tiny_qwen3(tmp_path / "model")
    with TinkerPeer(model, api_key=KEY) as peer:
        proxy = ProxyServer(model, peer.url, peer.model_name, tmp_path / "proxy")
        site = ProxySite(peer, [], proxy)
        site.publish(0)
        proxy.key_file.write_text("tml-wrong")
        proxy.launch().wait_until_live()
        try:
            deadline = time.monotonic() + 30
            while "CredentialsRefused" not in (why := httpx.get(f"{proxy.url}/ready", trust_env=False).text):
                assert time.monotonic() < deadline, why
                time.sleep(0.2)
            assert "tml-wrong" not in why
            assert ask(site, model="tiny").status_code == 502
            proxy.key_file.write_text(KEY)
            proxy.wait_until_ready()
            assert ask(site).is_success
        finally:
            proxy.stop()
        assert "tml-" not in proxy.log.read_text().replace("tml-)", "")


def test_a_key_that_is_replaced_before_the_first_request_is_used(tmp_path: Path) -> None:
    """Only then are the model's limits asked for, by a session that has the old key."""
    model, another = build_tiny_qwen3(tmp_path / "model"), "tml-another-key"
    with TinkerPeer(model, api_key=KEY) as peer:
        site = ProxySite(peer, [], ProxyServer(model, peer.url, peer.model_name, tmp_path / "proxy"))
        site.publish(0)
        site.proxy.launch().wait_until_ready()
        try:
            peer.accept(another)
            site.proxy.key_file.write_text(another)
            time.sleep(5)  # Sessions are not opened more often than that.
            assert ask(site).is_success
        finally:
            site.proxy.stop()


async def test_an_answer_whose_client_has_left_is_not_waited_for(impatient: ProxySite) -> None:
    site = impatient
    site.peer.fail(Operation.SAMPLE, NeverComes(), times=1)
    async with httpx.AsyncClient(base_url=site.proxy.url, trust_env=False) as http:
        with pytest.raises(httpx.ReadTimeout):
            await http.post("/v1/chat/completions", json=ASKED, timeout=1.0)
        async with VllmClient(site.proxy.url, control_token=TOKEN) as client, asyncio.timeout(3):
            while (await client.load()).running:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        metrics = (await http.get("/metrics")).text
        assert 'claas_proxy_responses_total{route="/v1/chat/completions",status="499"} 1' in metrics
        assert (await http.post("/v1/chat/completions", json=ASKED, timeout=30)).is_success
