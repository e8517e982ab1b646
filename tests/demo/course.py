"""The demo's course: an adapter learns from rounds of feedback, from version 0 on, while clients are answered."""

from __future__ import annotations

from dataclasses import dataclass

from claas_crds.v1alpha1.serving import HandoverKind
from tests.builders.resources import lora_adapter
from tests.demo.rounds import Round, Say, judge, never_paused, take_round
from tests.stack import resources
from tests.stack.install import Stack
from tests.stack.traffic import Felt, Traffic

LEAST_RISE = 0.30
TRAINING = {"learning_rate": 1e-2, "alpha": 0.5, "teacher_top_k": 20, "weight_decay": 0.0}


@dataclass(frozen=True)
class Outcome:
    """What came of the rounds; the first is version 0, which nobody trained."""

    handover: HandoverKind
    rounds: list[Round]
    felt: Felt

    @property
    def rise(self) -> float:
        """How much larger a share of answers follows the feedback in the end."""
        return self.rounds[-1].score.compliance - self.rounds[0].score.compliance

    def shortfalls(self) -> list[str]:
        """Which promises were not kept: it learns, no request fails, and only Sleep pauses vLLM."""
        found = []
        if self.rise < LEAST_RISE:
            found.append(f"compliance rose by {100 * self.rise:.0f} points, not by {100 * LEAST_RISE:.0f}")
        if self.felt.failures:
            found.append(f"{len(self.felt.failures)} requests failed, the first by {self.felt.failures[0]}")
        used = {each.job.status.handover for each in self.rounds if each.job is not None}
        if self.handover is not HandoverKind.AUTO and used != {self.handover}:
            found.append(f"steps were taken by {sorted(map(str, used))}, not by {self.handover}")
        if self.handover is not HandoverKind.SLEEP and not never_paused(self.rounds):
            found.append("vLLM was paused")
        return found


def learn(
    stack: Stack,
    namespace: str,
    adapter: str,
    handover: HandoverKind,
    rounds: int,
    say: Say,
    *,
    job_prefix: str = "round",
    pause_seconds: float = 0.0,
) -> Outcome:
    """Make the adapter in a namespace with a vLLM that serves, and take the rounds, beside clients that pause between
    questions. Raises RuntimeError when a job fails, TimeoutError when version 0 does not get into service."""
    stack.kubectl.apply([lora_adapter(adapter, namespace, training=TRAINING, handover=handover)])
    resources.wait_served(stack, namespace, adapter, 0, timeout_seconds=600)
    url = resources.vllm_url(stack, namespace)
    say("version 0 is in service; set-up is done")
    say(f"steps are taken by the hand-over {handover}")
    results = [Round(0, judge(url, adapter, 0), None, None)]
    say(f"version 0: {results[0].score.compliance:.0%} of unhinted answers are free of emoji")
    with Traffic(url, adapter, pause_seconds=pause_seconds) as traffic:
        for number in range(1, rounds + 1):
            name = f"{job_prefix}-{number}"
            results.append(take_round(stack, namespace, adapter, url, name, number, traffic.felt, say))
            say(f"version {results[-1].version}: {results[-1].score.compliance:.0%} are free of emoji")
    return Outcome(handover, results, traffic.felt)
