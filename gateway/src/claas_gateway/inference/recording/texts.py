"""The texts of a request by which people and feedback know it: the user's last one, and the system prompt."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

_SYSTEM = ("system", "developer")


def text_of(content: JsonValue) -> str:
    """The text of a message's content: a string, a list of parts, or null."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = [part.get("text") if isinstance(part, dict) else part for part in content]
    return "\n".join(part for part in parts if isinstance(part, str))


def user_prompt(document: Mapping[str, JsonValue], prompt: int = 0) -> str:
    """The text of the user's last message, or of that prompt of a completion; empty if it is given as token ids."""
    if "messages" in document:
        return next((text_of(each.get("content")) for each in reversed(_messages(document)) if _is_user(each)), "")
    given = document.get("prompt")
    if isinstance(given, str):
        return given
    if isinstance(given, list) and prompt < len(given):
        text = given[prompt]
        return text if isinstance(text, str) else ""
    return ""


def system_prompt(document: Mapping[str, JsonValue]) -> str:
    """The text of the system's (or developer's) messages before the conversation."""
    texts = []
    for message in _messages(document):
        if message.get("role") not in _SYSTEM:
            break
        texts.append(text_of(message.get("content")))
    return "\n\n".join(texts)


def _messages(document: Mapping[str, JsonValue]) -> list[dict[str, JsonValue]]:
    messages = document.get("messages")
    return [each for each in messages if isinstance(each, dict)] if isinstance(messages, list) else []


def _is_user(message: Mapping[str, JsonValue]) -> bool:
    return message.get("role") == "user"
