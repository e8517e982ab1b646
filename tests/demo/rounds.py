"""Rounds of the demo: ask, give feedback over HTTP or by a DistillJob, ask again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from claas_kube.objects.resources import JobObject
from claas_operator.plan.queueing import finished
from tests.builders.resources import distill_job
from tests.stack import resources, rollouts
from tests.stack.gateway import Gateway
from tests.stack.install import Stack
from tests.stack.rollouts import Score, Server
from tests.stack.traffic import Felt
from tests.tiny_model.tasks import Preference, Question, feedback, questions

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
    """The longest time in which no client got a token, from giving feedback to in service."""
    feedback: tuple[str, ...] = ()
    """The items of feedback that the gateway says it learned from."""


@dataclass(frozen=True)
class Learner:
    """The adapter that learns, and how it is reached."""

    stack: Stack
    gateway: Gateway
    namespace: str
    adapter: str
    server: Callable[[], Server]
    """A server of it, for those who go round the gateway."""
    say: Say

    def judge(self, version: int) -> Score:
        """How the served version answers questions without a hint, sampled at temperature 1. The gateway is told."""
        asked = questions(JUDGED_ANSWERS, seed=900_000 + version)
        answers = rollouts.chat(self.gateway, self.adapter, asked, seed=version * 1000)
        found = rollouts.score(answers, Preference.NO_EMOJI)
        self.gateway.put_score(self.adapter, version, "compliance", found.compliance)
        return found

    def answer(self, question: Question) -> str:
        """The likeliest answer to a question."""
        (answer,) = rollouts.chat(self.gateway, self.adapter, [question], seed=0, temperature=0.0)
        return answer.text

    def round_over_http(self, number: int, felt: Felt) -> Round:
        """Chat, say what is to be better, and wait for the version that learned from it.

        Raises RuntimeError when there is none, and when the gateway contradicts itself about what learned from what.
        """
        answers = rollouts.chat(self.gateway, self.adapter, self._questions(number), seed=number * 1000)
        said = feedback(Preference.NO_EMOJI, BATCH_SIZE, seed=number)
        began = time.monotonic()
        given = self.gateway.give_feedback(
            [answer.as_feedback(self.adapter, text) for answer, text in zip(answers, said, strict=True)]
        )
        ended = time.monotonic()
        items = [self.gateway.item(each.id) for each in given.items]
        versions = {item.version for item in items if item.state == "in-version"}
        first = items[0]
        if len(items) != BATCH_SIZE or len(versions) != 1 or None in versions or first.batch_id is None:
            raise RuntimeError(f"feedback {given.request_id} did not become one version: {items}")
        version = cast(int, first.version)
        learned = self.gateway.learned_by(self.adapter, version)
        if learned != {item.id for item in items}:
            raise RuntimeError(f"the gateway says that version {version} learned from {sorted(learned)}: {items}")
        self.say(f"POST /v1/feedback: {len(items)} items of {given.request_id} are in version {version}")
        return Round(
            version,
            self.judge(version),
            resources.job(self.stack, self.namespace, first.batch_id),
            felt.longest_gap_seconds(began, ended),
            tuple(item.id for item in items),
        )

    def round_by_kubectl(self, name: str, number: int, felt: Felt) -> Round:
        """The same by a DistillJob with the samples in it; raises RuntimeError when it fails."""
        answers = rollouts.sample_rollouts(self.server(), self.adapter, self._questions(number), seed=number * 1000)
        said = feedback(Preference.NO_EMOJI, BATCH_SIZE, seed=number)
        samples = [answer.as_sample(text) for answer, text in zip(answers, said, strict=True)]
        manifest = distill_job(name, self.namespace, self.adapter, samples)
        began = time.monotonic()
        self.stack.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(manifest))
        job = _watch(self.stack, self.namespace, name, self.say)
        ended = time.monotonic()
        if job.status.produced_version is None or job.status.phase != "Succeeded":
            raise RuntimeError(f"DistillJob {self.namespace}/{name} failed: {job.status.conditions}")
        version = job.status.produced_version
        return Round(version, self.judge(version), job, felt.longest_gap_seconds(began, ended))

    def _questions(self, number: int) -> Sequence[Question]:
        return questions(BATCH_SIZE, seed=number)


def never_paused(rounds: Sequence[Round]) -> bool:
    """Whether no step has paused serving, by what its trainer tells."""
    timings = [each.job.status.timings for each in rounds if each.job is not None]
    return all(each.sleep is None and not each.serving_gap for each in timings)


def _watch(stack: Stack, namespace: str, name: str, say: Say) -> JobObject:
    """Follow a job's phases in the terminal until it is finished."""
    began = time.monotonic()
    phases: list[str] = []
    while time.monotonic() - began < JOB_TIMEOUT_SECONDS:
        job = resources.job(stack, namespace, name)
        phase = job.status.phase
        if phase is not None and (not phases or phases[-1] != phase):
            phases.append(phase)
            say(f"kubectl apply, DistillJob {name}: {' > '.join(phases)}")
        if finished(job.status.conditions):
            return job
        time.sleep(0.3)
    raise RuntimeError(f"DistillJob {namespace}/{name} was not done within {JOB_TIMEOUT_SECONDS:g} s")
