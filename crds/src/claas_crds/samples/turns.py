"""Conversations as lists of turns: OpenAI's `messages` and ShareGPT's `conversations`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from claas_crds.samples.checks import SampleError, is_blank
from claas_crds.v1alpha1.training import ChatTurn, TurnRole

RECORDED_REMEDY = "give the whole prompt as the server made it: prompt_token_ids"
_TOOLS = f"belongs to a tool call, which no text shows; {RECORDED_REMEDY}"


class _Speaker(StrEnum):
    """The speaker of a turn, in either format."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


_SPEAKERS = {
    "system": _Speaker.SYSTEM,
    "developer": _Speaker.SYSTEM,
    "user": _Speaker.USER,
    "human": _Speaker.USER,
    "assistant": _Speaker.ASSISTANT,
    "gpt": _Speaker.ASSISTANT,
    "chatgpt": _Speaker.ASSISTANT,
    "model": _Speaker.ASSISTANT,
    "bot": _Speaker.ASSISTANT,
    "tool": _Speaker.TOOL,
    "function": _Speaker.TOOL,
    "function_call": _Speaker.TOOL,
    "observation": _Speaker.TOOL,
}
_ROLE_FIELDS, _CONTENT_FIELDS = ("role", "from"), ("content", "value")
_TOOL_FIELDS = frozenset({"tool_calls", "function_call", "tool_call_id"})
_REASONING_FIELDS = frozenset({"reasoning_content", "reasoning", "thinking"})
_WITHOUT_EFFECT = frozenset({"name", "id", "weight", "timestamp", "created_at", "refusal", "annotations"})


@dataclass(frozen=True)
class Dialogue:
    """A conversation up to the answer that the feedback is about."""

    system_prompt: str
    earlier: tuple[ChatTurn, ...]
    """The turns between the system prompt and the user's last message."""
    user_prompt: str
    response: str | None
    """The answer, where the conversation ends with it."""


@dataclass(frozen=True)
class _Turn:
    speaker: _Speaker
    content: str


def read_earlier(
    index: int, value: object, said_last: tuple[object, object], *, recorded: bool
) -> tuple[str, list[ChatTurn]]:
    """System prompt and turns of `messages` beside `user_prompt`: what was said before it. Raises SampleError.

    `said_last`: user_prompt and response. `recorded`: as for `read_dialogue`.
    """
    turns = _read(index, "messages", value, recorded=recorded)
    system, rest = _split_system(index, "messages", turns)
    if rest and rest[-1].speaker is _Speaker.USER:
        raise SampleError(
            index,
            "messages",
            "must end with the assistant's turn: beside user_prompt it holds the turns before it, not the question",
        )
    if len(rest) > 1 and (rest[-2].content, rest[-1].content) == said_last:
        raise SampleError(
            index,
            "messages",
            "ends with user_prompt and response themselves: beside user_prompt it holds the turns before it",
        )
    return system, _as_chat(rest)


def read_dialogue(index: int, field: str, value: object, *, answered: bool, recorded: bool) -> Dialogue:
    """A whole conversation. Raises SampleError.

    `answered`: the answer is given elsewhere, so the last turn is the user's. `recorded`: the prompt is given as the
    server rendered it, so turns that can't be rendered from text, such as tool calls, are ignored.
    """
    turns = _read(index, field, value, recorded=recorded)
    system, rest = _split_system(index, field, turns)
    response = None
    if not answered:
        if not rest or rest[-1].speaker is not _Speaker.ASSISTANT:
            raise SampleError(
                index,
                field,
                "must end with the assistant's answer that the feedback is about, or give it as response",
            )
        response, rest = rest[-1].content, rest[:-1]
    places = [place for place, turn in enumerate(rest) if turn.speaker is _Speaker.USER]
    if not places or (places[-1] != len(rest) - 1 and not recorded):
        raise SampleError(index, field, "must have the user's turn right before the answer")
    return Dialogue(system, tuple(_as_chat(rest[: places[-1]])), rest[places[-1]].content, response)


def _split_system(index: int, field: str, turns: Sequence[_Turn]) -> tuple[str, list[_Turn]]:
    system, rest = "", list(turns)
    if rest and rest[0].speaker is _Speaker.SYSTEM:
        system = rest.pop(0).content
    if any(turn.speaker is _Speaker.SYSTEM for turn in rest):
        raise SampleError(index, field, f"has a system turn that is not the first one; {RECORDED_REMEDY}")
    return system, rest


def _as_chat(turns: Sequence[_Turn]) -> list[ChatTurn]:
    roles = {_Speaker.USER: TurnRole.USER, _Speaker.ASSISTANT: TurnRole.ASSISTANT}
    return [ChatTurn(role=roles[turn.speaker], content=turn.content) for turn in turns if turn.speaker in roles]


def _read(index: int, field: str, value: object, *, recorded: bool) -> list[_Turn]:
    if not isinstance(value, list):
        raise SampleError(index, field, "has the wrong type: it must be a list of turns, each with role and content")
    return [_turn(index, f"{field}[{place}]", each, recorded=recorded) for place, each in enumerate(value)]


def _turn(index: int, place: str, value: object, *, recorded: bool) -> _Turn:
    if not isinstance(value, dict):
        raise SampleError(index, place, "has the wrong type: a turn is an object with role and content")
    given = {name: each for name, each in value.items() if each is not None and each != []}
    role = _first(given, _ROLE_FIELDS)
    speaker = _SPEAKERS.get(role) if isinstance(role, str) else None
    if speaker is None:
        raise SampleError(index, f"{place}.role", "is no role that is known: system, user or assistant")
    content = _text(index, place, _first(given, _CONTENT_FIELDS), recorded=recorded)
    for name in given.keys() - {*_ROLE_FIELDS, *_CONTENT_FIELDS} - _WITHOUT_EFFECT:
        if name in _TOOL_FIELDS:
            speaker = _Speaker.TOOL
        elif name not in _REASONING_FIELDS:
            raise SampleError(index, place, "has a field that is not known; a turn has role and content")
        elif not recorded:
            raise SampleError(index, place, f"has reasoning apart from its content; {RECORDED_REMEDY}")
    if recorded or speaker is not _Speaker.TOOL:
        if speaker is not _Speaker.TOOL and is_blank(content):
            raise SampleError(index, f"{place}.content", "is empty")
        return _Turn(speaker, content)
    raise SampleError(index, place, _TOOLS)


def _first(given: Mapping[str, object], names: Sequence[str]) -> object:
    return next((given[name] for name in names if name in given), None)


def _text(index: int, place: str, content: object, *, recorded: bool) -> str:
    """A turn's text; parts are joined as vLLM joins them for a template that takes text."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise SampleError(index, f"{place}.content", "has the wrong type: it must be a text")
    texts = []
    for number, part in enumerate(content):
        text = part.get("text") if isinstance(part, dict) else part
        if isinstance(text, str):
            texts.append(text)
        elif not recorded:
            raise SampleError(index, f"{place}.content[{number}]", f"is no text; {RECORDED_REMEDY}")
    return "\n".join(texts)
