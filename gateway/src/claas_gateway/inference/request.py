"""A client's request: what the gateway needs of it. All but fields without effect goes on untouched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar, cast

import msgspec
from pydantic import JsonValue

from claas_gateway.errors import Unprocessable
from claas_gateway.records import RolloutKind

Fields = dict[str, msgspec.Raw]
"""The fields of a JSON object, each as its own bytes."""

T = TypeVar("T")

_NEEDED = {RolloutKind.CHAT: "messages", RolloutKind.COMPLETION: "prompt"}
_FIELDS = msgspec.json.Decoder(Fields)
_ANYTHING = msgspec.json.Decoder()
_encode = msgspec.json.Encoder().encode


class Malformed(Unprocessable):
    """A body that the schema does not allow; told in FastAPI's form, a list of places and messages."""

    def __init__(self, kind: str, place: tuple[str, ...], message: str) -> None:
        super().__init__(f"{'.'.join(place)}: {message}")
        self.errors: list[dict[str, JsonValue]] = [{"type": kind, "loc": list(place), "msg": message}]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for an answer."""

    kind: RolloutKind
    body: bytes
    fields: Fields
    model: str | None
    stream: bool
    answers: int
    """How many answers to each prompt: `n`."""
    user: str | None

    def document(self) -> dict[str, JsonValue]:
        """The whole body as values."""
        return cast(dict[str, JsonValue], _ANYTHING.decode(self.body))

    def flag(self, name: str) -> bool:
        """Whether a field is there and `true`."""
        return _value(self.fields, name, bool) is True

    def has(self, name: str) -> bool:
        """Whether a field is there and not null."""
        return name in self.fields and bytes(self.fields[name]) != b"null"

    def stream_options(self) -> dict[str, JsonValue]:
        """The options of a stream; empty if there are none."""
        return cast(dict[str, JsonValue], _value(self.fields, "stream_options", dict) or {})

    def wants_usage(self) -> bool:
        """Whether a stream should end with the usage."""
        return self.stream_options().get("include_usage") is True

    def changed(self, **values: JsonValue) -> bytes:
        """The body with other values of some fields; the bytes of all others stay."""
        fields = dict(self.fields)
        for name, value in values.items():
            fields[name] = msgspec.Raw(_encode(value))
        return _encode(fields)


def read_request(kind: RolloutKind, body: bytes) -> Asked:
    """Read a request; raises Malformed."""
    fields = read_fields(body)
    needed = _NEEDED[kind]
    if needed not in fields or bytes(fields[needed]) == b"null":
        raise Malformed("missing", ("body", needed), "Field required")
    count = _value(fields, "n", int)
    idle = _without_effect(fields)
    if idle:
        fields = {name: value for name, value in fields.items() if name not in idle}
        body = _encode(fields)
    return Asked(
        kind=kind,
        body=body,
        fields=fields,
        model=read_model(fields),
        stream=_value(fields, "stream", bool) is True,
        answers=max(1, count) if count is not None else 1,
        user=_value(fields, "user", str) or None,
    )


def read_fields(body: bytes) -> Fields:
    """The fields of a body; raises Malformed."""
    try:
        return _FIELDS.decode(body)
    except msgspec.ValidationError:
        raise Malformed("dict_type", ("body",), "Input should be a JSON object") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Malformed("json_invalid", ("body",), "JSON decode error") from None


def read_model(fields: Fields) -> str | None:
    """The model that is asked for; None if none is named. Raises Malformed."""
    if "model" not in fields or bytes(fields["model"]) == b"null":
        return None
    model = _value(fields, "model", str)
    if model is None:
        raise Malformed("string_type", ("body", "model"), "Input should be a valid string")
    return model or None


def _without_effect(fields: Fields) -> frozenset[str]:
    """Fields that ask for nothing, which clients send all the same, and vLLM refuses."""
    idle = set()
    # vLLM takes more than `true` for a stream.
    if "stream_options" in fields and bytes(fields.get("stream", b"null")) in (b"null", b"false"):
        idle.add("stream_options")
    if "tools" in fields and _value(fields, "tools", list) == []:
        idle.add("tools")
        if _value(fields, "tool_choice", str) == "auto":
            idle.add("tool_choice")
    return frozenset(idle)


def _value(fields: Fields, name: str, kind: type[T]) -> T | None:
    """A field's value; None if it is missing or of another type, which the server will say."""
    raw = fields.get(name)
    if raw is None:
        return None
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
