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

from claas_vllm_client.wire import Message, ProbeAnswer

NOISE_NATS = 0.1
"""How far rounding moves a log-probability, at most."""
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


class Step(Message):
    """One token of a greedy answer: what was chosen, and the likeliest tokens with their log-probabilities."""

    chosen: int
    likeliest: dict[str, float]


class ProbeRecord(Message):
    """How a version and the base beneath it answered a probe, one after the other."""

    probe: str
    """The probe's digest."""
    adapter: tuple[Step, ...]
    base: tuple[Step, ...]

    @property
    def separation(self) -> float | None:
        """The distance of the version from the base."""
        return distance(self.adapter, self.base)


class Finding(StrEnum):
    """What a comparison came to."""

    APPLIED = "applied"
    """The version answers as it did."""
    NOT_APPLIED = "not_applied"
    """The base answers in its place."""
    OPEN = "open"
    """Nothing was recorded, the base itself has changed since, or version and base are too near to each other."""


def record_of(spec: ProbeSpec, adapter: ProbeAnswer, base: ProbeAnswer) -> ProbeRecord:
    """What is to be remembered of two answers."""
    return ProbeRecord(probe=spec.digest, adapter=_steps(adapter), base=_steps(base))


def parse_record(document: Mapping[str, JsonValue] | None, spec: ProbeSpec) -> ProbeRecord | None:
    """What was remembered; None when it is nothing, can't be read, or is about another probe."""
    if document is None:
        return None
    try:
        record = ProbeRecord.model_validate(document)
    except ValidationError:
        return None
    return record if record.probe == spec.digest else None


def distance(left: Sequence[Step], right: Sequence[Step]) -> float | None:
    """How far apart two answers are, in nats: the mean over their likeliest tokens, as long as both wrote the same.

    A token that only one of them lists counts as far as it is surely apart: less than that is not known. Where each
    log-probability moves by `n` at most, this moves by `n` at most. None when there is nothing to compare.
    """
    differences: list[float] = []
    for one, other in zip(left, right, strict=False):
        differences += _apart(one.likeliest, other.likeliest)
        if one.chosen != other.chosen:
            break
    return fmean(differences) if differences else None


def same_base(now: ProbeRecord, recorded: ProbeRecord) -> bool:
    """Whether the base answers as it did.

    Not so after another release of vLLM, or on another device; nor in vLLM 0.32 on a CPU, where a request for the
    base that shares a batch with one for an adapter is answered with the adapter of the last slot.
    """
    return _near(now.base, recorded.base)


def worth_keeping(recorded: ProbeRecord, now: ProbeRecord) -> bool:
    """Whether what was recorded still holds: the base or the version answers as it did. A record that holds is not
    made anew, so that small changes don't add up unseen."""
    return same_base(now, recorded) or _near(now.adapter, recorded.adapter)


def _near(one: Sequence[Step], other: Sequence[Step]) -> bool:
    apart = distance(one, other)
    return apart is not None and apart <= NOISE_NATS


def judge(now: ProbeRecord, recorded: ProbeRecord | None) -> Finding:
    """Whether the version that answered now is the one that was recorded.

    Accused is what is more than half as far from its record as that was from the base, and at most half as far from
    the base as from its record. While no log-probability moves by more than NOISE_NATS, no healthy version is.
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
    """Whether a version that answers for the first time is applied, by the version that it was trained from: one step
    does not bring what was clearly apart from the base all the way back to it."""
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


def _steps(answer: ProbeAnswer) -> tuple[Step, ...]:
    pairs = list(zip(answer.token_ids, answer.likeliest, strict=False))[:STEPS_KEPT]
    return tuple(
        Step(chosen=token, likeliest={name: round(value, 5) for name, value in likeliest.items()})
        for token, likeliest in pairs
    )
