"""The teacher's prompt keeps all that the student saw, and adds the hindsight block."""

from __future__ import annotations

from functools import partial

import pytest

from claas_trainer.step_errors import HindsightError
from claas_trainer.teachers.hindsight import (
    HEADING,
    Message,
    Role,
    as_chat,
    closing_text,
    conversation,
    hindsight_block,
    insert_hindsight,
    teacher_conversation,
)

HISTORY = (
    Message(Role.SYSTEM, "Be kind."),
    Message(Role.USER, "Hello"),
    Message(Role.ASSISTANT, "Hello!"),
)


def render(chat: list[dict[str, str]], *, thinking: bool = False) -> str:
    turns = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in chat)
    return f"{turns}<|im_start|>assistant\n" + ("" if thinking else "<think>\n\n</think>\n\n")


def test_the_block_begins_with_the_heading_and_holds_the_feedback() -> None:
    block = hindsight_block("  use no emojis ")
    assert block.startswith(HEADING)
    assert "HINDSIGHT CONTEXT" in HEADING
    assert " use no emojis\n" in block


def test_the_teachers_conversation_keeps_system_prompt_and_earlier_turns_and_extends_the_last() -> None:
    question = Message(Role.USER, "What is hot?")
    hinted = teacher_conversation((*HISTORY, question), "be short")
    assert hinted[:-1] == HISTORY
    assert hinted[-1].role is Role.USER
    assert hinted[-1].content == f"What is hot?\n\n{hindsight_block('be short')}"


def test_a_system_prompt_is_there_only_if_there_was_one() -> None:
    assert [m.role for m in conversation("Hi")] == [Role.USER]
    assert [m.role for m in conversation("Hi", "Be kind.")] == [Role.SYSTEM, Role.USER]


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("user_prompt", ["What is hot?", "assistant", "think", "Hello", " padded\n"])
def test_both_ways_lead_to_the_same_prompt_whatever_the_thinking_setting(thinking: bool, user_prompt: str) -> None:
    messages = (*HISTORY, Message(Role.USER, user_prompt))
    expected = render(as_chat(teacher_conversation(messages, "be short")), thinking=thinking)
    closings = [closing_text(partial(render, thinking=on)) for on in (False, True)]
    assert insert_hindsight(render(as_chat(messages), thinking=thinking), user_prompt, "be short", closings) == (
        expected
    )


def test_without_a_closing_the_last_occurrence_counts() -> None:
    messages = (*HISTORY, Message(Role.USER, "Hello"))
    prompt = render(as_chat(messages))
    expected = render(as_chat(teacher_conversation(messages, "be short")))
    assert insert_hindsight(prompt, "Hello", "be short") == expected


def test_a_template_that_trims_the_message_still_finds_its_place() -> None:
    prompt = render(as_chat((*HISTORY, Message(Role.USER, "What is hot?"))))
    closings = [closing_text(render)]
    hinted = insert_hindsight(prompt, "  What is hot?\n", "be short", closings)
    assert hinted == insert_hindsight(prompt, "What is hot?", "be short", closings)


@pytest.mark.parametrize(
    ("prompt", "user_prompt", "feedback", "said"),
    [
        ("a prompt", "SECRET", "fine", "user_prompt does not occur"),
        ("a prompt", "  ", "fine", "user_prompt is blank"),
        ("a prompt", "prompt", " \n", "feedback is blank"),
    ],
)
def test_what_cannot_be_placed_is_refused_without_repeating_the_text(
    prompt: str, user_prompt: str, feedback: str, said: str
) -> None:
    with pytest.raises(HindsightError, match=said) as caught:
        insert_hindsight(prompt, user_prompt, feedback)
    assert "SECRET" not in str(caught.value)


def test_a_conversation_must_end_with_the_user() -> None:
    for messages in (HISTORY, ()):
        with pytest.raises(HindsightError, match="must end with a user"):
            teacher_conversation(messages, "be short")


def test_a_template_that_hides_the_user_is_refused() -> None:
    with pytest.raises(HindsightError, match="does not show"):
        closing_text(lambda chat: "nothing")
