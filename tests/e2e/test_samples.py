"""Wrong samples fail the job, name the sample and the field, and serving is never paused."""

from __future__ import annotations

import json

import pytest
from pydantic import JsonValue

from tests.builders.resources import sample
from tests.e2e.stage.scene import Scene
from tests.stack.traffic import Traffic

pytestmark = pytest.mark.e2e

WRONG: dict[str, tuple[dict[str, JsonValue], str]] = {
    "lengths": (
        {"prompt_token_ids": [1, 2], "response_token_ids": [3, 4, 5], "response_logprobs": [-0.1]},
        "samples[1].response_logprobs",
    ),
    "vocabulary": (
        {"prompt_token_ids": [1, 2], "response_token_ids": [3, 999_999], "response_logprobs": [-0.1, -0.1]},
        "samples[1].response_token_ids",
    ),
    "empty": ({"response": "\u200b"}, "samples[1].response"),
}


def test_wrong_samples_fail_their_jobs_and_serving_is_never_paused(scene: Scene) -> None:
    before = scene.served()
    with Traffic(scene.url(), scene.adapter_name, clients=1, pause_seconds=0.5) as traffic:
        for name, (wrong, _) in WRONG.items():
            scene.apply(f"wrong-{name}", [sample(), {**sample(), **wrong}])
        text = json.dumps([{**sample(), "response_token_ids": [3], "response_logprobs": [0.0]}])
        manifest = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "nan-samples", "namespace": scene.namespace},
            "data": {"samples.json": text.replace("0.0", "NaN")},
        }
        scene.stack.kubectl.apply([manifest])
        scene.apply("wrong-nan", source={"configMapRef": {"name": "nan-samples"}})
        scene.apply("wrong-missing", source={"configMapRef": {"name": "nowhere"}}, activeDeadlineSeconds=20)
        for name, (_, field) in WRONG.items():
            _assert_refused(scene, f"wrong-{name}", "InvalidSample", field)
        _assert_refused(scene, "wrong-nan", "InvalidSample", "samples[0].response_logprobs")
        _assert_refused(scene, "wrong-missing", "SamplesNotFound", "nowhere")
    assert traffic.felt.failures == []
    assert scene.served() == before


def _assert_refused(scene: Scene, name: str, reason: str, said: str) -> None:
    job = scene.finished(name, 180)
    failed = next(condition for condition in job.status.conditions if condition.type == "Failed")
    assert (job.status.phase, failed.reason) == ("Failed", reason), failed.message
    assert said in failed.message
    assert job.status.timings.sleep is None
    assert job.status.attempts <= 1


def test_a_sample_longer_than_the_models_context_is_named(scene: Scene) -> None:
    scene.apply("too-long", [{**sample(), "feedback": "no emojis please " * 3000}])
    _assert_refused(scene, "too-long", "InvalidSample", "samples[0]")
