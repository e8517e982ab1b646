"""The teacher's prompt keeps all that the student saw, and adds the hindsight block."""

from __future__ import annotations

import pytest

from claas_trainer.samples.hindsight import (
    HEADING,
    Message,
    Role,
    conversation,
    hindsight_block,
    teacher_conversation,
)
from claas_trainer.sdpo.errors import HindsightError

HISTORY = (
    Message(Role.SYSTEM, "Be kind."),
    Message(Role.USER, "Hello"),
    Message(Role.ASSISTANT, "Hello!"),
)


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


@pytest.mark.parametrize("feedback", ["", " \n"])
def test_blank_feedback_is_refused(feedback: str) -> None:
    with pytest.raises(HindsightError, match="feedback is blank"):
        hindsight_block(feedback)


def test_earlier_turns_come_between_system_prompt_and_question() -> None:
    question = Message(Role.USER, "What is hot?")
    assert conversation("What is hot?", "Be kind.", HISTORY[1:]) == (*HISTORY, question)


def test_a_conversation_must_end_with_the_user() -> None:
    for messages in (HISTORY, ()):
        with pytest.raises(HindsightError, match="must end with a user"):
            teacher_conversation(messages, "be short")
