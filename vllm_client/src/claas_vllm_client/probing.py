"""Whether an adapter is applied: how it answers the probe now, held against how it did, and against the base.

vLLM has been seen to serve the base under an adapter's name, silently, after a wake or with a file whose modules it
does not know. Both answer well, so answers have to be compared. Asked twice, a healthy server answers alike but for
rounding: its sums depend on what else is in the batch, which moves a log-probability by up to 0.1 nats. So a version
is accused only on differences that rounding can't make, and one that hardly differs from the base never.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean

from pydantic import JsonValue, ValidationError

from claas_vllm_client.wire import Answer, ProbeAnswer

NOISE_NATS = 0.1
"""Largest change of a log-probability by rounding."""
STEPS_KEPT = 16
"""Tokens of an answer that are compared."""
_LEAST_LOGPROB = -30.0


@dataclass(frozen=True)
class ProbeSpec:
    """The fixed prompt a version must answer before it goes into service."""

    prompt: str
    max_tokens: int = 8
    timeout_seconds: float = 60.0

    @property
    def digest(self) -> str:
        """Tells probes apart without quoting them."""
        return hashlib.sha256(f"{self.max_tokens} {self.prompt}".encode()).hexdigest()[:16]


class AnswerPosition(Answer):
    """One token of a greedy answer: what was chosen, and the likeliest tokens with their log-probabilities."""

    chosen: int
    likeliest: dict[str, float]


class ProbeRecord(Answer):
    """How a version and the base beneath it answered a probe, one after the other."""

    probe: str
    """The probe's digest."""
    adapter: tuple[AnswerPosition, ...]
    base: tuple[AnswerPosition, ...]

    @property
    def separation(self) -> float | None:
        """The distance of the version from the base."""
        return distance(self.adapter, self.base)


class Finding(StrEnum):
    """Result of a comparison."""

    APPLIED = "applied"
    """The version answers as recorded."""
    NOT_APPLIED = "not_applied"
    """The version answers as the base model does."""
    OPEN = "open"
    """No record, the base model's answer has changed, or version and base model are too similar."""


def record_of(spec: ProbeSpec, adapter: ProbeAnswer, base: ProbeAnswer) -> ProbeRecord:
    """Record of the answers of version and base model."""
    return ProbeRecord(probe=spec.digest, adapter=_steps(adapter), base=_steps(base))


def parse_record(document: Mapping[str, JsonValue] | None, spec: ProbeSpec) -> ProbeRecord | None:
    """Parses a record; None if it is empty, unreadable, or of another probe."""
    if document is None:
        return None
    try:
        record = ProbeRecord.model_validate(document)
    except ValidationError:
        return None
    return record if record.probe == spec.digest else None


def distance(left: Sequence[AnswerPosition], right: Sequence[AnswerPosition]) -> float | None:
    """Distance of two answers in nats: the mean difference of log-probabilities over their most likely tokens, up to
    the first position where the answers differ.

    A token that only one of them lists counts with the smallest difference that it can have. If each log-probability
    changes by at most `n`, the distance changes by at most `n`. None if there is nothing to compare.
    """
    differences: list[float] = []
    for one, other in zip(left, right, strict=False):
        differences += _apart(one.likeliest, other.likeliest)
        if one.chosen != other.chosen:
            break
    return fmean(differences) if differences else None


def same_base(now: ProbeRecord, recorded: ProbeRecord) -> bool:
    """Whether the base model answers as recorded. It may not after a change of vLLM's release or of the device; nor
    in vLLM 0.32 on a CPU, which answers a request for the base model with the adapter of the last slot if it shares a
    batch with a request for an adapter.
    """
    return _near(now.base, recorded.base)


def worth_keeping(recorded: ProbeRecord, now: ProbeRecord) -> bool:
    """Whether the record is still valid: base model or version answer as recorded. A valid record is not replaced, so
    that small changes can't accumulate unnoticed."""
    return same_base(now, recorded) or _near(now.adapter, recorded.adapter)


def _near(one: Sequence[AnswerPosition], other: Sequence[AnswerPosition]) -> bool:
    apart = distance(one, other)
    return apart is not None and apart <= NOISE_NATS


def judge(now: ProbeRecord, recorded: ProbeRecord | None) -> Finding:
    """Compares the current answer with the record.

    A version is judged as not applied if its distance to its record is more than half the recorded distance to the
    base model, and its distance to the base model is at most half its distance to the record. As long as no
    log-probability moves by more than NOISE_NATS, no applied version is judged so.
    """
    if recorded is None:
        return Finding.OPEN
    moved = distance(now.adapter, recorded.adapter)
    from_base = distance(now.adapter, now.base)
    separation = recorded.separation
    if moved is None or from_base is None or separation is None or not same_base(now, recorded):
        return Finding.OPEN
    if separation < 2 * NOISE_NATS:
        return Finding.OPEN
    if moved <= separation / 2:
        return Finding.APPLIED
    return Finding.NOT_APPLIED if from_base <= moved / 2 else Finding.OPEN


def judge_successor(now: ProbeRecord, parent: ProbeRecord | None) -> Finding:
    """Judges the first answer of a version by the record of its parent: if the parent was clearly different from the
    base model, one step does not bring the version all the way back."""
    if parent is None or not same_base(now, parent):
        return Finding.OPEN
    apart, from_base = parent.separation, now.separation
    if apart is None or from_base is None or apart < 4 * NOISE_NATS:
        return Finding.OPEN
    return Finding.NOT_APPLIED if from_base <= NOISE_NATS / 2 else Finding.APPLIED


def _apart(left: Mapping[str, float], right: Mapping[str, float]) -> list[float]:
    if not left or not right:
        return []
    least_left, least_right = (max(_LEAST_LOGPROB, min(values.values())) for values in (left, right))
    differences = []
    for token in left.keys() | right.keys():
        one = max(_LEAST_LOGPROB, left.get(token, _LEAST_LOGPROB))
        other = max(_LEAST_LOGPROB, right.get(token, _LEAST_LOGPROB))
        if token not in left:
            differences.append(max(0.0, other - least_left))
        elif token not in right:
            differences.append(max(0.0, one - least_right))
        else:
            differences.append(abs(one - other))
    return differences


def _steps(answer: ProbeAnswer) -> tuple[AnswerPosition, ...]:
    pairs = list(zip(answer.token_ids, answer.likeliest, strict=False))[:STEPS_KEPT]
    return tuple(
        AnswerPosition(chosen=token, likeliest={name: round(value, 5) for name, value in likeliest.items()})
        for token, likeliest in pairs
    )
