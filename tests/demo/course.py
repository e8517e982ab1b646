"""The demo's course: an adapter learns from rounds of feedback, from version 0 on, while clients are answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from claas_crds.v1alpha1.serving import HandoverKind
from tests.builders.resources import Manifest, lora_adapter
from tests.demo.rounds import Learner, Round, Say, never_paused
from tests.stack import modal, resources, tinker
from tests.stack.gateway import Gateway, wait_until_it_answers
from tests.stack.install import Stack
from tests.stack.rollouts import Server
from tests.stack.traffic import Felt, Traffic
from tests.tiny_model.tasks import Preference, Question, follows, questions

LEAST_RISE = 0.30
BY_KUBECTL = 2
"""The round whose feedback is a DistillJob; that of the others goes through the gateway."""
SHOWN_SEED = 20
TRAINING = {"learning_rate": 1e-2, "alpha": 0.5, "teacher_top_k": 20, "weight_decay": 0.0}


@dataclass(frozen=True)
class Shown:
    """One question, and its likeliest answer before the first round and after the last."""

    question: str
    before: str
    after: str


@dataclass(frozen=True)
class Way:
    """How an adapter is trained and served."""

    namespace: str
    adapter: str
    manifest: Manifest
    server: Callable[[], Server]
    """One that serves it."""
    handover: HandoverKind | None
    """None: its steps need nothing of serving."""
    name: str

    def __str__(self) -> str:
        return self.name


def local(stack: Stack, namespace: str, adapter: str, handover: HandoverKind) -> Way:
    """Beside the vLLM of the namespace, which serves it."""
    manifest = lora_adapter(adapter, namespace, training=TRAINING, handover=handover)
    return Way(
        namespace,
        adapter,
        manifest,
        lambda: Server(resources.vllm_url(stack, namespace)),
        handover,
        f"the hand-over {handover}",
    )


def by_tinker(stack: Stack, namespace: str, adapter: str) -> Way:
    """By the Tinker service of the namespace, and served by its inference proxy."""
    url = tinker.base_url(stack, namespace)
    manifest = tinker.tinker_adapter(adapter, namespace, url, training=TRAINING)

    def server() -> Server:
        return Server(tinker.proxy_url(stack, resources.adapter(stack, namespace, adapter)))

    return Way(namespace, adapter, manifest, server, None, "the Tinker service")


def by_modal(stack: Stack, namespace: str, adapter: str) -> Way:
    """On the Modal platform of the test cluster, which serves it, too."""
    manifest = modal.modal_adapter(adapter, namespace, training=TRAINING)

    def server() -> Server:
        return modal.server(resources.adapter(stack, namespace, adapter))

    return Way(namespace, adapter, manifest, server, None, "the Modal platform")


@dataclass(frozen=True)
class Outcome:
    """What came of the rounds; the first is version 0, which nobody trained."""

    way: Way
    rounds: list[Round]
    felt: Felt
    shown: Shown

    @property
    def rise(self) -> float:
        """How much larger a share of answers follows the feedback in the end."""
        return self.rounds[-1].score.compliance - self.rounds[0].score.compliance

    def shortfalls(self) -> list[str]:
        """Which promises were not kept: it learns, no request fails, and only Sleep pauses serving."""
        found = []
        if self.rise < LEAST_RISE:
            found.append(f"compliance rose by {100 * self.rise:.0f} points, not by {100 * LEAST_RISE:.0f}")
        if self.felt.failures:
            found.append(f"{len(self.felt.failures)} requests failed, the first by {self.felt.failures[0]}")
        used = {each.job.status.handover for each in self.rounds if each.job is not None}
        handover = self.way.handover
        if handover not in (None, HandoverKind.AUTO) and used != {handover}:
            found.append(f"steps were taken by {sorted(map(str, used))}, not by {handover}")
        if handover is not HandoverKind.SLEEP and not never_paused(self.rounds):
            found.append("serving was paused")
        return found


def learn(
    stack: Stack,
    gateway: Gateway,
    way: Way,
    rounds: int,
    say: Say,
    *,
    job_prefix: str = "round",
    pause_seconds: float = 0.0,
) -> Outcome:
    """Make the adapter, and take the rounds, beside clients of the gateway, who pause between questions.

    Raises RuntimeError when a job fails, TimeoutError when version 0 does not get into service.
    """
    adapter = way.adapter
    stack.kubectl.apply([way.manifest])
    resources.wait_served(stack, way.namespace, adapter, 0, timeout_seconds=600)
    wait_until_it_answers(gateway)
    say("version 0 is in service; set-up is done")
    say(f"steps are taken by {way}")
    learner = Learner(stack, gateway, way.namespace, adapter, way.server, say)
    results = [Round(0, learner.judge(0), None, None)]
    say(f"version 0: {results[0].score.compliance:.0%} of unhinted answers are free of emoji")
    question, before = _worst_answer(learner)
    with Traffic(gateway.url, adapter, pause_seconds=pause_seconds, headers=gateway.headers) as traffic:
        for number in range(1, rounds + 1):
            if number == BY_KUBECTL:
                results.append(learner.round_by_kubectl(f"{job_prefix}-{number}", number, traffic.felt))
            else:
                results.append(learner.round_over_http(number, traffic.felt))
            say(f"version {results[-1].version}: {results[-1].score.compliance:.0%} are free of emoji")
    return Outcome(way, results, traffic.felt, Shown(question.text, before, learner.answer(question)))


def _worst_answer(learner: Learner) -> tuple[Question, str]:
    """A question whose likeliest answer has an emoji, if one of a few does."""
    asked = questions(8, seed=SHOWN_SEED)
    for question in asked:
        answer = learner.answer(question)
        if not follows(Preference.NO_EMOJI, answer):
            return question, answer
    return asked[0], learner.answer(asked[0])
