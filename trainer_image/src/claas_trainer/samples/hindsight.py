"""The teacher's prompt: the student's conversation with the feedback inserted as hindsight.

The hindsight block goes to the end of the user's last message, so that the system prompt, the earlier turns and the
thinking setting stay as the student saw them (arXiv 2601.20802, 2603.12273). `prompt_turns` finds that place in a
rendered prompt. Needs neither PyTorch nor a tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from claas_trainer.sdpo.errors import HindsightError

HEADING = "[HINDSIGHT CONTEXT]"
SEPARATOR = "\n\n"


class Role(StrEnum):
    """Who speaks."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


def conversation(
    user_prompt: str, system_prompt: str | None = None, earlier: Sequence[Message] = ()
) -> tuple[Message, ...]:
    """The conversation up to the user's prompt: the system prompt, if any, earlier turns, and the user's prompt."""
    system = () if system_prompt is None else (Message(Role.SYSTEM, system_prompt),)
    return (*system, *earlier, Message(Role.USER, user_prompt))


def as_chat(messages: Sequence[Message]) -> list[dict[str, str]]:
    """The messages in the form that chat templates take."""
    return [{"role": message.role.value, "content": message.content} for message in messages]


def hindsight_block(feedback: str) -> str:
    """The text that shows the feedback to the teacher.

    Raises:
        HindsightError: the feedback is blank.
    """
    if not feedback.strip():
        raise HindsightError("the feedback is blank: a sample needs a feedback text for the teacher to see")
    return (
        f"{HEADING}\n"
        f"Later feedback from the user: {feedback.strip()}\n"
        "Answer the message above so that it satisfies this feedback."
    )


def teacher_conversation(messages: Sequence[Message], feedback: str) -> tuple[Message, ...]:
    """The conversation with the hindsight block after the user's last message.

    Raises:
        HindsightError: the conversation does not end with a user's message, or the feedback is blank.
    """
    if not messages or messages[-1].role is not Role.USER:
        raise HindsightError("the conversation must end with a user's message: that is where hindsight goes")
    last = messages[-1]
    hinted = replace(last, content=f"{last.content}{SEPARATOR}{hindsight_block(feedback)}")
    return (*messages[:-1], hinted)
