"""What is known of the sampled tokens of an answer, by the companion's record or from the answer itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import msgspec
from pydantic import JsonValue

from claas_gateway.records import Evidence


@dataclass(frozen=True, slots=True)
class Sampled:
    """The tokens of one answer."""

    prompt_token_ids: tuple[int, ...] = ()
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    finish_reason: str | None = None
    finished: bool = True
    sampling: dict[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Record:
    """The tokens of all answers to a request, by choice, and the version that answered."""

    evidence: Evidence
    version: int | None
    answers: Mapping[int, Sampled]


NOTHING = Record(Evidence.NONE, None, {})


class _Output(msgspec.Struct):
    index: int
    token_ids: list[int]
    logprobs: list[float] | None = None
    finish_reason: str | None = None


class _Call(msgspec.Struct):
    prompt_token_ids: list[int]
    outputs: list[_Output]
    sampling: dict[str, object] = {}
    finished: bool = False


class _Record(msgspec.Struct):
    v: int
    calls: list[_Call]
    version: str | None = None


_RECORD = msgspec.json.Decoder(_Record)
_VERSION = re.compile(r"@([0-9]{1,18})(?:-[0-9a-f]{8})?\Z")


def read_record(line: bytes | None, answers: int) -> Record | None:
    """The companion's record of a request with so many answers to each prompt; None if it can't be read."""
    if line is None:
        return None
    try:
        record = _RECORD.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if record.v != 1:
        return None
    found = {
        place * answers + output.index: Sampled(
            prompt_token_ids=tuple(call.prompt_token_ids),
            token_ids=tuple(output.token_ids),
            logprobs=tuple(output.logprobs or ()),
            finish_reason=output.finish_reason,
            finished=call.finished,
            sampling=cast(dict[str, JsonValue], call.sampling),
        )
        for place, call in enumerate(record.calls)
        for output in call.outputs
    }
    return Record(Evidence.EXACT, version_number(record.version), found)


def version_number(name: str | None) -> int | None:
    """The number in a version's name such as `coder@7`, or `coder@7-0a1b2c3d` when it was loaded again; None if there
    is none."""
    found = _VERSION.search(name or "")
    return int(found[1]) if found else None
