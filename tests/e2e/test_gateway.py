"""Feedback over HTTP, by the real gateway, from the chat to the version and back to each item."""

from __future__ import annotations

import io
import uuid
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from pydantic import JsonValue
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.e2e.stage import processes
from tests.e2e.stage.handovers import assert_step_was_taken_once
from tests.e2e.stage.private_texts import assert_nowhere
from tests.e2e.stage.scene import Scene, gateway_pod
from tests.stack import rollouts
from tests.stack.gateway import Gateway, gateway, wait_until_it_answers
from tests.stack.resources import wait_for
from tests.stack.traffic import Traffic
from tests.tiny_model.tasks import Preference, feedback, questions

pytestmark = pytest.mark.e2e

PROMPT, SAID, CORRECTION = "Quokka8271 asks?", "Numbat9913 wants it shorter.", "Wombat5520 says."
BATCHES = "claas.dev/feedback-batch"


@pytest.fixture
def front(scene: Scene) -> Gateway:
    found = gateway(scene.stack, scene.serving)
    wait_until_it_answers(found)
    return found


def private_item(front: Gateway, adapter: str) -> dict[str, JsonValue]:
    """An item of feedback whose texts can be searched for, on an answer that the gateway names."""
    body = {"model": adapter, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 16, "seed": 5}
    with front.client(60) as client:
        answer = client.post("/v1/chat/completions", json=body).raise_for_status()
    return {
        "lora_id": adapter,
        "rollout_id": answer.headers["x-claas-rollout"],
        "feedback": SAID,
        "correction": CORRECTION,
    }


def sample_secrets(scene: Scene) -> str:
    return scene.stack.kubectl("get", "secrets", "-n", scene.namespace, "-l", BATCHES, "-o", "name").strip()


def test_each_item_is_followed_into_the_version_that_names_it_and_streams_outlast_the_pause(
    scene: Scene, front: Gateway
) -> None:
    adapter, before = scene.adapter_name, scene.served()
    answers = rollouts.chat(front, adapter, questions(5, seed=11), seed=11)
    said = feedback(Preference.NO_EMOJI, 5, seed=11)
    items = [answer.as_feedback(adapter, text) for answer, text in zip(answers, said, strict=True)]
    items.append(private_item(front, adapter))
    streams = Traffic(front.url, adapter, clients=2, max_tokens=300, ignore_eos=True, headers=front.headers)
    with scene.held_at("stepping") as fault, ThreadPoolExecutor(1) as pool, streams as traffic:
        asked = pool.submit(front.give_feedback, items)
        fault.reached()
        assert scene.is_asleep(scene.url())
        assert sample_secrets(scene) != ""
        fault.go_on()
        given = asked.result(180)
        traffic.wait_for_answers(3, 90)
    assert traffic.felt.failures == []
    assert given.status == "ok"
    assert given.distill_result is not None

    followed = [front.item(each.id) for each in given.items]
    assert [(item.state, item.version) for item in followed] == [("in-version", before + 1)] * len(items)
    batch = followed[0].batch_id
    assert batch is not None
    job = scene.job(batch)
    assert_step_was_taken_once(scene, job, before, scene.adapter().spec.serving.handover)
    (version,) = scene.versions_of(job)
    ids = {item.id for item in followed}
    assert set(version.record.feedback_ids) == ids
    assert front.learned_by(adapter, before + 1) == ids

    wait_for("the samples to be gone", lambda: not sample_secrets(scene), 30)
    document = scene.stack.kubectl("get", "distilljob", batch, "-n", scene.namespace, "-o", "json")
    assert_nowhere(["Quokka8271", "Numbat9913", "Wombat5520"], scene, job, document)


def test_the_exported_zip_loads_with_peft_and_holds_the_version_in_service(
    scene: Scene, front: Gateway, tmp_path: Path
) -> None:
    with front.client(60) as client:
        answer = client.get("/v1/lora/export", params={"lora_id": scene.adapter().lora_id}).raise_for_status()
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        archive.extractall(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(scene.stack.model_folder, dtype=torch.float32)
    loaded = get_peft_model_state_dict(PeftModel.from_pretrained(base, tmp_path))
    stored = load_file(scene.store.read(scene.served()).folder / "adapter_model.safetensors")
    assert loaded.keys() == stored.keys()
    assert all(torch.equal(loaded[name].float(), stored[name].float()) for name in stored)


def test_a_client_finds_its_request_again_after_the_gateway_was_killed_in_mid_step(
    scene: Scene, front: Gateway
) -> None:
    adapter, before = scene.adapter_name, scene.served()
    answers = rollouts.chat(front, adapter, questions(4, seed=12), seed=12)
    said = feedback(Preference.NO_EMOJI, 4, seed=12)
    items = [answer.as_feedback(adapter, text) for answer, text in zip(answers, said, strict=True)]
    key = uuid.uuid4().hex
    with scene.held_at("stepping") as fault, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(front.give_feedback, items, idempotency_key=key)
        fault.reached()
        processes.kill(gateway_pod(scene.stack))
        with pytest.raises(httpx.TransportError):
            asked.result(60)
        fault.go_on()
        wait_until_it_answers(front)
        given = front.give_feedback(items, idempotency_key=key)
    assert [(item.state, item.version) for item in given.items] == [("in-version", before + 1)] * len(items)
    assert front.give_feedback(items, idempotency_key=key).request_id == given.request_id
    batch = front.item(given.items[0].id).batch_id
    assert batch is not None
    assert_step_was_taken_once(scene, scene.job(batch), before, scene.adapter().spec.serving.handover)
    assert front.learned_by(adapter, before + 1) == {item.id for item in given.items}
    wait_for("the samples to be gone", lambda: not sample_secrets(scene), 30)
