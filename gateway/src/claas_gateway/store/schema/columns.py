"""Column types: how the values of records lie in the database.

What clients wrote lies there as bytes: any text survives, a NUL and a lone surrogate too, which PostgreSQL's own type
for texts refuses.
"""

from __future__ import annotations

import json
import struct
from datetime import UTC, datetime, timedelta
from enum import StrEnum

import msgspec
from pydantic import JsonValue
from sqlalchemy import BigInteger, LargeBinary, Text
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Moment(TypeDecorator[datetime]):
    """A time: microseconds since 1970."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        """To microseconds; a time without its zone raises TypeError."""
        return None if value is None else (value - _EPOCH) // _MICROSECOND

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        """To a time in UTC."""
        return None if value is None else _EPOCH + value * _MICROSECOND


class Name(TypeDecorator[str]):
    """A name: what can't be part of a stored one is replaced, so that asking for it finds nothing."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Without NUL and lone surrogates."""
        if value is None or (value.isascii() and "\0" not in value):
            return value
        return value.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


class Private(TypeDecorator[str]):
    """A text that people or a model wrote."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> bytes | None:
        """To UTF-8."""
        return None if value is None else value.encode("utf-8", "surrogatepass")

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> str | None:
        """From UTF-8."""
        return None if value is None else value.decode("utf-8", "surrogatepass")


class Json(TypeDecorator[JsonValue]):
    """A JSON value."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: JsonValue, dialect: Dialect) -> bytes:
        """To JSON; lone surrogates are escaped."""
        try:
            return msgspec.json.encode(value)
        except UnicodeEncodeError:
            return json.dumps(value, separators=(",", ":")).encode()

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> JsonValue:
        """From JSON."""
        if value is None:
            return None
        try:
            decoded: JsonValue = msgspec.json.decode(value)
        except msgspec.DecodeError:
            decoded = json.loads(value)
        return decoded


class Texts(TypeDecorator[tuple[str, ...]]):
    """Several texts: UTF-8 with a NUL before, between and after them, so that one is found by its bytes."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: tuple[str, ...] | None, dialect: Dialect) -> bytes:
        """To bytes."""
        if not value:
            return b""
        cleaned = (each.replace("\0", "\ufffd").encode("utf-8", "surrogatepass") for each in value)
        return b"\0" + b"\0".join(cleaned) + b"\0"

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> tuple[str, ...]:
        """From bytes."""
        if not value:
            return ()
        return tuple(each.decode("utf-8", "surrogatepass") for each in value[1:-1].split(b"\0"))


class PackedIds(TypeDecorator[tuple[int, ...]]):
    """Token ids: four bytes each, little-endian."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: tuple[int, ...] | None, dialect: Dialect) -> bytes | None:
        """To bytes; struct.error for what is no id."""
        return None if value is None else struct.pack(f"<{len(value)}I", *value)

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> tuple[int, ...]:
        """From bytes."""
        return () if value is None else struct.unpack(f"<{len(value) // 4}I", value)


class PackedLogprobs(TypeDecorator[tuple[float, ...]]):
    """Log-probabilities: four bytes each, little-endian, with the precision that servers give them in."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: tuple[float, ...] | None, dialect: Dialect) -> bytes | None:
        """To bytes."""
        return None if value is None else struct.pack(f"<{len(value)}f", *value)

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> tuple[float, ...]:
        """From bytes."""
        return () if value is None else struct.unpack(f"<{len(value) // 4}f", value)


class Closed(TypeDecorator[StrEnum]):
    """A value of a closed set."""

    impl = Text
    cache_ok = True

    def __init__(self, values: type[StrEnum]) -> None:
        super().__init__()
        self.values = values

    def process_bind_param(self, value: StrEnum | None, dialect: Dialect) -> str | None:
        """To its text."""
        return None if value is None else value.value

    def process_result_value(self, value: str | None, dialect: Dialect) -> StrEnum | None:
        """From its text."""
        return None if value is None else self.values(value)
