"""Messages of a request, as chat templates expect them. The rules are vLLM's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from claas_inference_proxy.errors import bad_value

_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Kinds of content parts, and the field with their text."""

Message = dict[str, JsonValue]


def normalised(messages: Sequence[Mapping[str, JsonValue]], *, as_parts: bool) -> list[Message]:
    """The messages for a template that takes contents as texts, or as lists of parts. Raises RefusalError."""
    return [_normalised(message, f"messages.{index}", as_parts) for index, message in enumerate(messages)]


def _normalised(message: Mapping[str, JsonValue], place: str, as_parts: bool) -> Message:
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise bad_value(f"{place}.role must be a string", f"{place}.role")
    texts = _texts(message.get("content"), f"{place}.content")
    found: Message = {"role": role, "content": "\n".join(texts)}
    if as_parts and role != "tool":
        found["content"] = [{"type": "text", "text": text} for text in texts]
    if role == "assistant":
        reasoning = message.get("reasoning", message.get("reasoning_content"))
        if isinstance(reasoning, str):
            found["reasoning"] = found["reasoning_content"] = reasoning
        calls = _tool_calls(message.get("tool_calls"), f"{place}.tool_calls")
        if calls:
            found["tool_calls"] = calls
    elif role == "tool" and "tool_call_id" in message:
        found["tool_call_id"] = message["tool_call_id"]
    elif role == "developer":
        found["tools"] = message.get("tools")
    if isinstance(message.get("name"), str):
        found["name"] = message["name"]
    return found


def _texts(content: JsonValue, place: str) -> list[str]:
    if content is None:
        return []
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        raise bad_value(f"{place} must be a string or a list of parts", place)
    return [_text(part, f"{place}.{index}") for index, part in enumerate(content)]


def _text(part: JsonValue, place: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(kind, str):
        raise bad_value(f"{place} must be a part with a type", place)
    if kind not in _TEXT_PARTS:
        raise bad_value(f"{place} is no text: the inference proxy takes texts alone", place)
    text, field = part.get(_TEXT_PARTS[kind]), f"{place}.{_TEXT_PARTS[kind]}"
    if not isinstance(text, str):
        raise bad_value(f"{field} must be a string", field)
    return text


def _tool_calls(calls: JsonValue, place: str) -> list[JsonValue]:
    """Earlier calls of tools; templates expect their arguments as objects."""
    if calls is None:
        return []
    if not isinstance(calls, list):
        raise bad_value(f"{place} must be a list", place)
    found: list[JsonValue] = []
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(call, dict) or not isinstance(function, dict) or call.get("type", "function") != "function":
            raise bad_value(f"{place}.{index} must be the call of a function", place)
        found.append({**call, "function": {**function, "arguments": _arguments(function.get("arguments"))}})
    return found


def _arguments(arguments: JsonValue) -> JsonValue:
    """As an object; what is none, or no JSON, becomes an empty one, because a later turn can't mend it."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return {}
    return arguments if isinstance(arguments, dict) else {}
