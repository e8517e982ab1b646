"""Feedback from a request to a version: gateway and operator as processes, a real API server, a played node."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import JsonValue

from claas_contract.outcome import FailureReason
from claas_kube.resources import SECRETS
from tests.builders.gateway_records import build_rollout
from tests.simulation.gateway_process import GatewayProcess
from tests.simulation.operator_process import OperatorProcess
from tests.simulation.scene import Scene
from tests.simulation.trainer import Ending, Script

pytestmark = pytest.mark.integration

BATCHES = "claas.dev/feedback-batch"


@pytest.fixture
def gateway(scene: Scene, tmp_path: Path) -> Iterator[GatewayProcess]:
    """A gateway that knows an answer of the adapter `tone`."""
    process = GatewayProcess(scene.simulation.cluster, tmp_path, [scene.namespace])
    process.keep([build_rollout("ro-1", namespace=scene.namespace, adapter="tone")])
    process.start_ready()
    yield process
    if process.running:
        process.stop()
    print(process.tail())


def items(*feedback: str) -> JsonValue:
    """A request with this feedback on the answer that is known."""
    return {"requests": [{"lora_id": "tone", "rollout_id": "ro-1", "feedback": each} for each in feedback]}


def give(gateway: GatewayProcess, body: JsonValue, **headers: str) -> httpx.Response:
    """Send feedback."""
    return httpx.post(f"{gateway.url}/v1/feedback", json=body, headers=headers, timeout=60)


def look(gateway: GatewayProcess, place: str) -> httpx.Response:
    """Ask for something."""
    return httpx.get(gateway.url + place, timeout=30)


def test_feedback_becomes_a_version_and_can_be_followed_both_ways(
    operator: OperatorProcess, scene: Scene, gateway: GatewayProcess
) -> None:
    scene.serve()
    adapter = scene.ready_adapter()
    answer = give(gateway, items("Shorter.", "In verse."))
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["status"], told["batch_size"]) == ("ok", 2)
    assert told["distill_result"]["metadata"]["total_loss"] == 0.5
    assert (told["vllm"], told["timing_ms"]["sleep"]) == ({"slept": True, "woke": True}, 10)
    ids = [item["id"] for item in told["items"]]
    assert {item["version"] for item in told["items"]} == {1}
    assert look(gateway, f"/v1/feedback/{ids[0]}").json()["state"] == "in-version"
    learned = look(gateway, "/v1/versions/tone/1/feedback").json()["items"]
    assert [item["id"] for item in learned] == ids
    volume = scene.simulation.volume
    assert volume.feedback_ids(scene.namespace, adapter.storage_path, 1) == tuple(ids)
    scene.wait("no samples left", lambda: not scene.objects(SECRETS, BATCHES))


def test_a_step_that_fails_for_good_is_told_and_leaves_no_samples(
    operator: OperatorProcess, scene: Scene, gateway: GatewayProcess
) -> None:
    scene.serve()
    scene.ready_adapter()
    failing = Script(ending=Ending.FAIL, reason=FailureReason.POLICY_MOVED, message="it moved too far")
    scene.simulation.usual[scene.namespace] = lambda: failing
    answer = give(gateway, items("Shorter."))
    assert answer.status_code == 500, answer.text
    assert "Feedback update failed in phase 'distill'" in answer.json()["detail"]
    ids = [item["id"] for item in answer.json()["items"]]
    item = look(gateway, f"/v1/feedback/{ids[0]}").json()
    assert (item["state"], item["version"]) == ("refused", None)
    assert (item["reason"], item["message"]) == ("PolicyMoved", "it moved too far")
    scene.wait("no samples left", lambda: not scene.objects(SECRETS, BATCHES))
