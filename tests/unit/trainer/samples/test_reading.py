"""Reading the samples file, and what of a sample is held against the model."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Literal

import pytest

from claas_contract.outcome import FailureReason
from claas_crds.samples.checks import SampleError
from claas_crds.v1alpha1.training import DistillBatchItem
from claas_trainer.errors import InputError, InvalidSampleError
from claas_trainer.samples.reading import ModelLimits, check_against_model, check_length, read_samples

LIMITS = ModelLimits(vocabulary_size=100, context_tokens=50)
GOOD: dict[str, object] = {"user_prompt": "Hi?", "response": "Ho.", "feedback": "shorter"}
RECORDED = GOOD | {"response_token_ids": [1, 2], "response_logprobs": [-0.5, -1.5]}


def test_a_wrong_sample_in_the_file_is_an_invalid_sample_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD | {"feedback": False}))
    with pytest.raises(InvalidSampleError) as caught:
        read_samples(tmp_path / "samples.jsonl")
    assert caught.value.reason is FailureReason.INVALID_SAMPLE
    assert caught.value.invalid.faults[0].place == "samples[1].feedback"
    assert "true or false" in caught.value.message


@pytest.mark.parametrize(
    ("field", "ids", "place"),
    [
        ("response_token_ids", [1, 100], "samples[5].response_token_ids[1]"),
        ("response_token_ids", [-1, 1], "samples[5].response_token_ids[0]"),
        ("prompt_token_ids", [1, 2, 10**12], "samples[5].prompt_token_ids[2]"),
    ],
)
def test_a_token_outside_the_vocabulary_is_named(field: str, ids: list[int], place: str) -> None:
    sample = DistillBatchItem.model_validate(RECORDED | {field: ids})
    with pytest.raises(SampleError) as caught:
        check_against_model(5, sample, LIMITS)
    assert caught.value.place == place


def test_a_sample_that_just_fits_the_context_is_taken_and_one_token_more_is_not() -> None:
    check_length(0, "feedback", 50, LIMITS)
    with pytest.raises(SampleError, match=r"samples\[0\].feedback: is 51 tokens long"):
        check_length(0, "feedback", 51, LIMITS)


def test_a_missing_samples_file_is_a_fault_of_the_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="samples_file"):
        read_samples(tmp_path / "absent.json")


@pytest.mark.parametrize("written", ["NFC", "NFD"])
@pytest.mark.parametrize("asked", ["NFC", "NFD"])
def test_a_path_is_found_whichever_way_its_accents_are_written(
    tmp_path: Path, written: Literal["NFC", "NFD"], asked: Literal["NFC", "NFD"]
) -> None:
    name = "Rückmeldungen März 反馈.json"
    (tmp_path / unicodedata.normalize(written, name)).write_text(json.dumps([GOOD]))
    assert len(read_samples(tmp_path / unicodedata.normalize(asked, name))) == 1
