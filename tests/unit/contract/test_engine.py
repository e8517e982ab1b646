"""What an engine is asked for keeps the names that CLaaS users know, and holds token ids where samples had texts."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from claas_contract.engine import ENGINE_NEEDS, DistillBatchRequestPayload, DistillResponse, TokenisedSample
from claas_crds.v1alpha1.engine import EngineName

SAMPLE = TokenisedSample(student_prompt_ids=(1, 2), teacher_prompt_ids=(1, 2, 3), response_ids=(4, 5))


def test_payload_and_answer_have_the_known_names() -> None:
    assert list(DistillBatchRequestPayload.model_fields) == ["lora_id", "training", "samples", "save_in_place"]
    assert list(DistillResponse.model_fields) == ["lora_id", "metadata"]


def test_no_engine_is_handed_a_text() -> None:
    assert {type(value) for value in SAMPLE.model_dump(exclude_none=True).values()} == {tuple}
    with pytest.raises(ValidationError, match="feedback") as error:
        TokenisedSample.model_validate(SAMPLE.model_dump() | {"feedback": "my private feedback"})
    assert "my private feedback" not in str(error.value)


def test_a_payload_survives_the_way_to_another_machine() -> None:
    payload = DistillBatchRequestPayload(
        lora_id="user123/coder-v1", samples=(SAMPLE, SAMPLE.model_copy(update={"old_logprobs": (-0.1, -1e-9)}))
    )
    assert DistillBatchRequestPayload.model_validate_json(payload.model_dump_json()) == payload
    assert payload.tokens == 2 * SAMPLE.tokens == 2 * (3 + 2)


def test_a_batch_needs_a_sample() -> None:
    with pytest.raises(ValidationError, match="samples"):
        DistillBatchRequestPayload(lora_id="a", samples=())


@pytest.mark.parametrize("lora_id", ["user123/coder-v1", "a", "a/b/c", "A_b.c-d"])
def test_a_lora_id_may_have_segments(lora_id: str) -> None:
    assert DistillBatchRequestPayload(lora_id=lora_id, samples=(SAMPLE,)).lora_id == lora_id


@pytest.mark.parametrize("lora_id", ["", "/a", "a/", "a//b", "a@7", "../a", "a b", "a/../b"])
def test_a_lora_id_that_could_be_taken_for_something_else_is_refused(lora_id: str) -> None:
    with pytest.raises(ValidationError, match="lora_id"):
        DistillBatchRequestPayload(lora_id=lora_id, samples=(SAMPLE,))


@pytest.mark.parametrize("name", EngineName)
def test_the_needs_of_every_engine_are_known_without_it(name: EngineName) -> None:
    assert name in ENGINE_NEEDS
