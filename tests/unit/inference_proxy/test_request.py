"""What a request may ask for: bounds as vLLM's, and a clear refusal of what the service can't do."""

from __future__ import annotations

import pytest
from pydantic import JsonValue

from claas_inference_proxy.bodies import read_document
from claas_inference_proxy.errors import RefusalError
from claas_inference_proxy.generation.request import ChatBody, CompletionBody, read_chat, read_completion

CHAT: dict[str, JsonValue] = {"model": "m", "messages": [{"role": "user", "content": "a private text"}]}
TEXT: dict[str, JsonValue] = {"model": "m", "prompt": "a private text"}
TOOLS: list[JsonValue] = [{"type": "function", "function": {"name": "look"}}]

REFUSED: dict[str, tuple[dict[str, JsonValue], str]] = {
    "a presence penalty": ({"presence_penalty": 0.5}, "presence_penalty"),
    "a frequency penalty": ({"frequency_penalty": -0.5}, "frequency_penalty"),
    "a repetition penalty": ({"repetition_penalty": 1.1}, "repetition_penalty"),
    "a bias": ({"logit_bias": {"5": 3}}, "logit_bias"),
    "min_p": ({"min_p": 0.1}, "min_p"),
    "a least length": ({"min_tokens": 3}, "min_tokens"),
    "JSON alone": ({"response_format": {"type": "json_object"}}, "response_format"),
    "a grammar": ({"structured_outputs": {"choice": ["a"]}}, "structured_outputs"),
    "a grammar by its old name": ({"guided_json": {}}, "guided_json"),
    "beam search": ({"use_beam_search": True}, "use_beam_search"),
    "words that must not come": ({"bad_words": ["no"]}, "bad_words"),
    "a cut prompt": ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
    "no answers": ({"n": 0}, "n"),
    "more answers than memory holds": ({"n": 129}, "n"),
    "an infinite temperature": ({"temperature": float("inf")}, "temperature"),
    "a negative temperature": ({"temperature": -1}, "temperature"),
    "a temperature that is none": ({"temperature": "hot"}, "temperature"),
    "top_p of 0": ({"top_p": 0}, "top_p"),
    "top_p above 1": ({"top_p": 1.5}, "top_p"),
    "a negative top_k": ({"top_k": -5}, "top_k"),
    "an empty stop": ({"stop": [""]}, "stop"),
    "options of a stream without one": ({"stream_options": {"include_usage": True}}, "stream_options"),
    "log-probabilities of the prompt in a stream": ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    "too many of them": ({"prompt_logprobs": 21}, "prompt_logprobs"),
    "a seed out of bounds": ({"seed": 2**63}, "seed"),
}
REFUSED_IN_CHAT: dict[str, tuple[dict[str, JsonValue], str]] = {
    "tools to be called": ({"tools": TOOLS, "tool_choice": "auto"}, "tool_choice"),
    "tools, for which auto is the default": ({"tools": TOOLS}, "tool_choice"),
    "a tool that must be called": ({"tools": TOOLS, "tool_choice": "required"}, "tool_choice"),
    "a call without tools": ({"tool_choice": "required"}, "tool_choice"),
    "candidates without log-probabilities": ({"top_logprobs": 2}, "top_logprobs"),
    "an echo": ({"echo": True}, "echo"),
    "functions": ({"functions": [{"name": "look"}]}, "functions"),
    "a template": ({"chat_template": "{{ messages }}"}, "chat_template"),
    "two ends": ({"continue_final_message": True}, "continue_final_message"),
    "messages that are none": ({"messages": "a private text"}, "messages"),
    "audio": ({"modalities": ["text", "audio"]}, "modalities"),
}
NEUTRAL: dict[str, JsonValue] = {
    "presence_penalty": 0, "frequency_penalty": 0.0, "repetition_penalty": 1.0, "logit_bias": {}, "min_p": 0,
    "min_tokens": 0, "response_format": {"type": "text"}, "use_beam_search": False, "structured_outputs": None,
    "user": "somebody", "an_unknown_field": 3, "best_of": 1, "top_k": -1, "stream_options": None,
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_change_the_answer_and_can_not_be_honoured_is_refused_by_its_name(case: str) -> None:
    fields, param = REFUSED[case]
    for read, body in ((read_chat, CHAT), (read_completion, TEXT)):
        with pytest.raises(RefusalError) as caught:
            read({**body, **fields})
        assert (caught.value.param or "").startswith(param)
        assert "private" not in caught.value.message


@pytest.mark.parametrize("case", REFUSED_IN_CHAT)
def test_a_chat_has_further_limits(case: str) -> None:
    fields, param = REFUSED_IN_CHAT[case]
    with pytest.raises(RefusalError) as caught:
        read_chat({**CHAT, **fields})
    assert caught.value.param == param
    assert "private" not in caught.value.message


@pytest.mark.parametrize("name", NEUTRAL)
def test_what_asks_for_nothing_is_ignored(name: str) -> None:
    assert isinstance(read_chat({**CHAT, name: NEUTRAL[name]}), ChatBody)
    assert isinstance(read_completion({**TEXT, name: NEUTRAL[name]}), CompletionBody)


def test_tools_go_to_the_template_if_nobody_waits_for_calls() -> None:
    parameters: JsonValue = {"type": "object"}
    described: list[JsonValue] = [{"type": "function", "function": {"name": "look", "parameters": parameters}}]
    asked = read_chat({**CHAT, "tools": described, "tool_choice": "none"})
    assert asked.tools is not None
    # As vLLM dumps them: a template may write them as they are.
    assert [tool.for_template() for tool in asked.tools] == [
        {"type": "function", "function": {"name": "look", "description": None, "parameters": parameters}}
    ]


@pytest.mark.parametrize("prompt", [None, ""])
def test_a_completion_needs_a_prompt(prompt: JsonValue) -> None:
    with pytest.raises(RefusalError) as caught:
        read_completion({"model": "m", "prompt": prompt})
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("body", [b"", b"{bad", b"[]", b'"x"', b"[" * 100_000])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(RefusalError) as caught:
        read_document(body)
    assert caught.value.status == 400


def test_a_request_has_so_many_prompts_and_each_as_many_tokens_as_it_likes() -> None:
    prompts: tuple[JsonValue, ...] = ("a", [1, 2])
    for one in prompts:
        with pytest.raises(RefusalError, match="1024 prompts at most"):
            read_completion({**TEXT, "prompt": [one] * 1025})
    tokens: list[JsonValue] = [1] * 2000
    assert read_completion({**TEXT, "prompt": tokens}).prompt == tokens
