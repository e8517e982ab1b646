"""Rounds of the demo: ask, give feedback, apply a DistillJob, watch it, ask again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from claas_kube.objects.resources import JobObject
from claas_operator.plan.queueing import finished
from tests.builders.resources import distill_job
from tests.stack import resources, rollouts
from tests.stack.install import Stack
from tests.stack.rollouts import Score
from tests.stack.traffic import Felt
from tests.tiny_model.tasks import Preference, feedback, questions

BATCH_SIZE = 16
JUDGED_ANSWERS = 64
JOB_TIMEOUT_SECONDS = 240.0
Say = Callable[[str], None]


@dataclass(frozen=True)
class Round:
    """One version of the adapter: how it answers, and the step that made it (None for the initial one)."""

    version: int
    score: Score
    job: JobObject | None
    felt_gap_seconds: float | None
    """The longest time in which no client got a token, from apply to in service."""


def judge(url: str, served_name: str, version: int) -> Score:
    """How the served version answers questions without any hint, sampled at temperature 1."""
    asked = questions(JUDGED_ANSWERS, seed=900_000 + version)
    answers = rollouts.sample_rollouts(url, served_name, asked, seed=version * 1000)
    return rollouts.score(answers, Preference.NO_EMOJI)


def take_round(
    stack: Stack, namespace: str, adapter: str, url: str, name: str, number: int, felt: Felt, say: Say
) -> Round:
    """One round of feedback by a job of that name, to a new version in service; raises RuntimeError when it fails."""
    asked = questions(BATCH_SIZE, seed=number)
    answers = rollouts.sample_rollouts(url, adapter, asked, seed=number * 1000)
    said = feedback(Preference.NO_EMOJI, BATCH_SIZE, seed=number)
    samples = [answer.as_sample(text) for answer, text in zip(answers, said, strict=True)]
    manifest = distill_job(name, namespace, adapter, samples)
    began = time.monotonic()
    stack.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(manifest))
    job = _watch(stack, namespace, name, say)
    ended = time.monotonic()
    if job.status.produced_version is None or job.status.phase != "Succeeded":
        raise RuntimeError(f"DistillJob {namespace}/{name} failed: {job.status.conditions}")
    version = job.status.produced_version
    return Round(version, judge(url, adapter, version), job, felt.longest_gap_seconds(began, ended))


def never_paused(rounds: Sequence[Round]) -> bool:
    """Whether no step has paused vLLM, by what its trainer tells."""
    timings = [each.job.status.timings for each in rounds if each.job is not None]
    return all(each.sleep is None and each.serving_gap == 0 for each in timings)


def _watch(stack: Stack, namespace: str, name: str, say: Say) -> JobObject:
    """Follow a job's phases in the terminal until it is finished."""
    began = time.monotonic()
    phases: list[str] = []
    while time.monotonic() - began < JOB_TIMEOUT_SECONDS:
        job = resources.job(stack, namespace, name)
        phase = job.status.phase
        if phase is not None and (not phases or phases[-1] != phase):
            phases.append(phase)
            say(f"{name}: {' > '.join(phases)}")
        if finished(job.status.conditions):
            return job
        time.sleep(0.3)
    raise RuntimeError(f"DistillJob {namespace}/{name} was not done within {JOB_TIMEOUT_SECONDS:g} s")
