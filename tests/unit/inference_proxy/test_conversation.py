"""Messages reach the template as vLLM gives them."""

from __future__ import annotations

import pytest
from pydantic import JsonValue

from claas_inference_proxy.errors import RefusalError
from claas_inference_proxy.prompts.conversation import Message, normalised

PARTS: list[JsonValue] = [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}, "c"]


def call(arguments: JsonValue) -> Message:
    return {"type": "function", "id": "1", "function": {"name": "look", "arguments": arguments}}


def calling(*calls: JsonValue) -> Message:
    return {"role": "assistant", "content": "", "tool_calls": list(calls)}


CASES: dict[str, tuple[Message, Message]] = {
    "a text": ({"role": "user", "content": "a"}, {"role": "user", "content": "a"}),
    "parts": ({"role": "user", "content": PARTS}, {"role": "user", "content": "a\nb\nc"}),
    "nothing": ({"role": "assistant", "content": None}, {"role": "assistant", "content": ""}),
    "no content": ({"role": "assistant"}, {"role": "assistant", "content": ""}),
    "a refusal": (
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "assistant", "content": "no"},
    ),
    "a name": ({"role": "user", "content": "a", "name": "me"}, {"role": "user", "content": "a", "name": "me"}),
    "other fields": ({"role": "user", "content": "a", "weight": 3}, {"role": "user", "content": "a"}),
    "reasoning": (
        {"role": "assistant", "content": "a", "reasoning_content": "b"},
        {"role": "assistant", "content": "a", "reasoning": "b", "reasoning_content": "b"},
    ),
    "a tool's answer": (
        {"role": "tool", "content": PARTS, "tool_call_id": "1"},
        {"role": "tool", "content": "a\nb\nc", "tool_call_id": "1"},
    ),
    "a call": (calling(call('{"at": "sky"}')), calling(call({"at": "sky"}))),
    "a call with an object": (calling(call({"at": "sky"})), calling(call({"at": "sky"}))),
    "a call without arguments": (calling(call("")), calling(call({}))),
    "a call with broken arguments": (calling(call('{"at": ')), calling(call({}))),
    "a call with a list": (calling(call("[]")), calling(call({}))),
    "no calls": (calling(), {"role": "assistant", "content": ""}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_message_is_normalised(case: str) -> None:
    given, expected = CASES[case]
    assert normalised([given], as_parts=False) == [expected]


def test_a_template_of_parts_gets_parts_but_for_tools_answers() -> None:
    assert normalised(
        [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}, {"role": "assistant"}], as_parts=True
    ) == [
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "tool", "content": "b"},
        {"role": "assistant", "content": []},
    ]


WRONG: dict[str, tuple[Message, str]] = {
    "no role": ({"content": "private"}, "messages.1.role"),
    "a number": ({"role": "user", "content": 5}, "messages.1.content"),
    "an image": (
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "private"}}]},
        "messages.1.content.0",
    ),
    "a part without a kind": ({"role": "user", "content": [{"text": "private"}]}, "messages.1.content.0"),
    "a part without its text": ({"role": "user", "content": [{"type": "text"}]}, "messages.1.content.0.text"),
    "calls that are none": ({"role": "assistant", "tool_calls": "private"}, "messages.1.tool_calls"),
    "a call of something else": (calling({"type": "custom", "custom": "private"}), "messages.1.tool_calls"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_message_of_another_form_is_refused_by_its_place(case: str) -> None:
    wrong, place = WRONG[case]
    with pytest.raises(RefusalError) as caught:
        normalised([{"role": "user", "content": "fine"}, wrong], as_parts=False)
    assert caught.value.param == place
    assert "private" not in caught.value.message
