"""What the service is asked, with vLLM's limits and defaults."""

from __future__ import annotations

import pytest
from pydantic import JsonValue

from claas_inference_proxy.errors import RefusalError
from claas_inference_proxy.generation.plan import Limits, Plan, answer_limit, plan
from claas_inference_proxy.generation.request import read_completion
from claas_inference_proxy.prompts.tokenizer import Tokenizer
from tests.unit.inference_proxy.conftest import Make

LIMITS = Limits(context_length=100, vocabulary=270)


def planned(tokenizer: Tokenizer, *prompt: int, **fields: JsonValue) -> Plan:
    asked = read_completion({"prompt": "x", **fields})
    return plan(asked, prompt or (1, 2, 3), tokenizer, LIMITS, max_tokens=asked.max_tokens, logprobs=asked.logprobs)


def test_what_a_request_names_is_asked_for(tokenizer: Tokenizer) -> None:
    ask = planned(
        tokenizer, n=2, temperature=0.5, top_p=0.9, top_k=7, seed=3, max_tokens=9, logprobs=4, prompt_logprobs=1
    ).ask
    assert (ask.prompt, ask.number, ask.temperature, ask.top_p, ask.top_k, ask.seed) == ((1, 2, 3), 2, 0.5, 0.9, 7, 3)
    assert (ask.max_tokens, ask.likeliest, ask.prompt_likeliest) == (9, 4, 1)


def test_what_it_does_not_name_is_the_model_s(make_tokenizer: Make) -> None:
    ask = planned(make_tokenizer(generation={"temperature": 0.6, "top_p": 0.95, "top_k": 20})).ask
    assert (ask.temperature, ask.top_p, ask.top_k) == (0.6, 0.95, 20)
    plain = planned(make_tokenizer()).ask
    assert (plain.temperature, plain.top_p, plain.top_k, plain.max_tokens) == (1.0, 1.0, -1, 16)


def test_the_service_is_told_every_end(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer(generation={"eos_token_id": [65]})
    end = tokenizer.end_id
    assert end is not None
    assert planned(tokenizer).ask.stop == tuple(sorted({65, end}))
    assert planned(tokenizer, stop_token_ids=[5]).ask.stop == tuple(sorted({5, 65, end}))
    assert planned(tokenizer, ignore_eos=True).ask.stop == ()
    assert planned(tokenizer, ignore_eos=True, stop_token_ids=[5]).ask.stop == (5,)
    # It takes strings or ids.
    by_strings = planned(tokenizer, stop=["###"]).ask.stop
    assert by_strings == ("###", tokenizer.decode([65]), "<|im_end|>")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"stop_token_ids": [270]}, "stop_token_ids"),
        ({"n": 2, "temperature": 0}, "n"),
        ({"max_tokens": 101}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_what_can_not_be_asked_is_refused(tokenizer: Tokenizer, fields: dict[str, JsonValue], param: str) -> None:
    with pytest.raises(RefusalError) as caught:
        planned(tokenizer, **fields)
    assert caught.value.param == param


@pytest.mark.parametrize("token", [270, -1])
def test_a_token_that_the_model_does_not_have_is_refused(tokenizer: Tokenizer, token: int) -> None:
    with pytest.raises(RefusalError, match=f"Token id {token} is out of vocabulary"):
        planned(tokenizer, 1, token)


@pytest.mark.parametrize(
    ("prompt", "asked", "allowed"),
    [(90, 5, 5), (90, 10, 10), (90, 50, 10), (90, None, 10), (99, None, 1), (0, 100, 100)],
)
def test_an_answer_is_as_long_as_asked_or_as_fits(prompt: int, asked: int | None, allowed: int) -> None:
    assert answer_limit(prompt, asked, 100) == allowed


@pytest.mark.parametrize(
    ("prompt", "asked", "words"),
    [
        (101, 5, "maximum context length is 100 tokens. However, your prompt contains 101 input tokens"),
        (10, 101, "max_tokens=101 cannot be greater than max_model_len=100"),
        (100, 5, "max_tokens must be at least 1, got 0"),
        (10, 0, "max_tokens must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_told_in_vllm_s_words(prompt: int, asked: int, words: str) -> None:
    with pytest.raises(RefusalError, match=words) as caught:
        answer_limit(prompt, asked, 100)
    assert caught.value.status == 400
