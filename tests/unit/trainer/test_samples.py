"""Every way in which a sample can be wrong, and that no message ever shows a sample's text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claas_crds.contract import FailureReason
from claas_trainer.errors import InputError, SampleError
from claas_trainer.samples import ModelLimits, check_against_model, check_length, parse_samples, read_samples

LIMITS = ModelLimits(vocabulary_size=100, context_tokens=50)
GOOD: dict[str, object] = {"user_prompt": "Hi?", "response": "Ho.", "feedback": "shorter"}
RECORDED = GOOD | {"response_token_ids": [1, 2], "response_logprobs": [-0.5, -1.5]}


def batch(**changes: object) -> str:
    """Three good samples and a fourth with changes; `...` removes a field."""
    sample = {name: value for name, value in (RECORDED | changes).items() if value is not ...}
    return json.dumps([GOOD, GOOD, GOOD, sample])


@pytest.mark.parametrize(
    ("changes", "place", "said"),
    [
        ({"response": ""}, "samples[3].response", "is empty"),
        ({"response": " \n"}, "samples[3].response", "is empty"),
        ({"feedback": ...}, "samples[3].feedback", "is missing"),
        ({"feedback": "  "}, "samples[3].feedback", "is empty"),
        ({"user_prompt": ""}, "samples[3].user_prompt", "is empty"),
        ({"user_prompt": 7}, "samples[3].user_prompt", "wrong type"),
        ({"response_logprobs": [-0.5]}, "samples[3].response_logprobs", "1 values for 2 response_token_ids"),
        ({"response_token_ids": ...}, "samples[3].response_logprobs", "without response_token_ids"),
        ({"response_logprobs": [-0.5, float("nan")]}, "samples[3].response_logprobs[1]", "NaN"),
        ({"response_logprobs": [float("-inf"), -1.0]}, "samples[3].response_logprobs[0]", "infinite"),
        ({"response_logprobs": [-0.5, 0.5]}, "samples[3].response_logprobs[1]", "above 0"),
        ({"response_logprobs": [-0.5, None]}, "samples[3].response_logprobs[1]", "wrong type"),
        ({"response_token_ids": [1, "2"]}, "samples[3].response_token_ids[1]", "wrong type"),
        ({"response_token_ids": [1, True]}, "samples[3].response_token_ids[1]", "wrong type"),
        ({"response_token_ids": [1, 2.5]}, "samples[3].response_token_ids[1]", "wrong type"),
        ({"a secret": 1}, "samples[3]", "not known"),
        ({"response": "\ud800"}, "samples[3].response", "surrogate"),
    ],
)
def test_a_wrong_sample_is_named_with_its_field(changes: dict[str, object], place: str, said: str) -> None:
    with pytest.raises(SampleError) as caught:
        parse_samples(batch(**changes))
    assert caught.value.reason is FailureReason.INVALID_SAMPLE
    assert caught.value.field == place
    assert said in caught.value.message
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("text", ["", "{}", "[]", "7", "[1]", "[null]", "[[]]", '["x"]', "[" * 100_000, '[{"a":1}'])
def test_what_is_no_list_of_samples_is_refused(text: str) -> None:
    with pytest.raises(SampleError):
        parse_samples(text)


def test_a_logprob_that_rounding_left_above_zero_is_accepted() -> None:
    assert parse_samples(batch(response_logprobs=[1e-7, 0.0]))


@pytest.mark.parametrize(
    ("field", "ids", "place"),
    [
        ("response_token_ids", [1, 100], "samples[5].response_token_ids[1]"),
        ("response_token_ids", [-1, 1], "samples[5].response_token_ids[0]"),
        ("prompt_token_ids", [1, 2, 10**12], "samples[5].prompt_token_ids[2]"),
    ],
)
def test_a_token_outside_the_vocabulary_is_named(field: str, ids: list[int], place: str) -> None:
    sample = parse_samples(json.dumps([RECORDED | {field: ids}]))[0]
    with pytest.raises(SampleError) as caught:
        check_against_model(5, sample, LIMITS)
    assert caught.value.field == place


def test_a_sample_that_just_fits_the_context_is_taken_and_one_token_more_is_not() -> None:
    check_length(0, "feedback", 50, LIMITS)
    with pytest.raises(SampleError, match=r"samples\[0\].feedback: is 51 tokens long"):
        check_length(0, "feedback", 51, LIMITS)


def test_a_missing_samples_file_is_a_fault_of_the_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="samples_file"):
        read_samples(tmp_path / "absent.json")


def test_a_samples_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "samples.json").write_bytes(b'["\xff"]')
    with pytest.raises(SampleError, match="UTF-8"):
        read_samples(tmp_path / "samples.json")


FIELDS = [
    "user_prompt", "response", "feedback", "system_prompt", "prompt", "prompt_token_ids", "response_token_ids",
    "response_logprobs",
]  # fmt: skip
MARK = "qqzx"
TEXTS = st.text(alphabet=st.characters(codec="utf-8"), max_size=20).map(lambda text: f"{MARK}{text}{MARK}")
VALUES = st.recursive(
    TEXTS | st.integers() | st.floats() | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=5,
)


def error_of(text: str) -> SampleError | None:
    try:
        parse_samples(text)
    except SampleError as error:
        return error
    return None


@given(st.lists(st.dictionaries(st.sampled_from(FIELDS) | TEXTS, VALUES, max_size=6), max_size=3))
def test_no_message_about_any_document_shows_its_text(document: list[dict[str, object]]) -> None:
    error = error_of(json.dumps(document))
    if error is not None:
        assert MARK not in str(error)
        assert error.__cause__ is None
        assert error.__suppress_context__ or error.__context__ is None


@given(TEXTS)
def test_no_message_about_broken_json_shows_its_text(text: str) -> None:
    with pytest.raises(SampleError) as caught:
        parse_samples(f'[{{"response": "{MARK}", {text}')
    assert MARK not in str(caught.value)
