"""What a gateway has stored after some weeks of feedback, written through the store's own interface."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from pydantic import JsonValue

from claas_gateway.directory.models import Adapter
from claas_gateway.records import (
    BatchState,
    Evidence,
    FeedbackBatch,
    FeedbackItem,
    FeedbackRequest,
    ItemOutcome,
    ItemState,
    ProbeScore,
    RequestMode,
    Rollout,
    RolloutKind,
    ServiceChange,
    VersionSeen,
)
from claas_gateway.rollouts.hashing import answer_hash, prompt_hash
from claas_gateway.store.interface import Store
from tests.builders.gateway import gateway_adapter

NOW = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)
_TIMINGS = {
    "queued": 4.0,
    "start": 6.5,
    "prepare": 2.1,
    "sleep": 0.8,
    "load": 1.2,
    "step": 9.4,
    "release": 0.3,
    "wake": 1.1,
    "publish": 0.9,
    "swap": 1.4,
    "settle": 0.6,
    "serving_gap": 12.8,
}
_PARENTS = {6: 4, 9: 7}
"""Version 5 was rejected, and version 8 rolled back."""
_SAID = (
    ("What is the capital of France?", "The capital of France is Paris. It lies on the Seine.", "Shorter, please."),
    ("Write a commit message for this change.", "Updated some files and fixed things.", "Imperative mood; say what."),
    ("How do I list pods?", "You can use the kubectl tool to list pods.", "Give the command first."),
    ("Is 91 prime?", "Yes, 91 is a prime number.", "Wrong: 91 = 7 · 13."),
)


@dataclass(frozen=True)
class Told:
    """Identifiers of what a story left in the store."""

    learned: str
    """An item that a version learned from."""
    refused: str
    waiting: str
    batch: str


def coder(namespace: str = "team-a", name: str = "coder", *, served: int = 11, ready: str = "Serving") -> Adapter:
    """The story's adapter as the directory shows it; `ready` is the reason of its condition Ready."""
    well = ready == "Serving"
    condition: dict[str, JsonValue] = {
        "type": "Ready",
        "status": "True" if well else "False",
        "reason": ready,
        "message": "every ready pod serves it" if well else "the Deployment has no ready pod",
        "lastTransitionTime": "2026-11-27T07:00:00Z",
    }
    status: dict[str, JsonValue] = {"servedVersion": served, "latestVersion": served, "conditions": [condition]}
    return gateway_adapter(name, namespace, status=status)


def rollout(identifier: str, namespace: str, adapter: str, prompt: str, answer: str, at: datetime) -> Rollout:
    """A recorded answer."""
    return Rollout(
        id=identifier,
        namespace=namespace,
        adapter=adapter,
        request_id=f"rq-{identifier}",
        choice=0,
        kind=RolloutKind.CHAT,
        created=at,
        version=6,
        user="u-17",
        request={"messages": [{"role": "user", "content": prompt}]},
        system_prompt="You are a terse assistant.",
        user_prompt=prompt,
        answer=answer,
        answer_hash=answer_hash(answer),
        prompt_hash=prompt_hash(prompt),
        evidence=Evidence.EXACT,
        prompt_token_ids=tuple(range(24)),
        response_token_ids=tuple(range(11)),
        sampling={"temperature": 0.7, "top_p": 0.95},
        finish_reason="stop",
    )


def item(identifier: str, namespace: str, adapter: str, feedback: str, at: datetime) -> FeedbackItem:
    """Feedback on the rollout `ro-<identifier>`."""
    return FeedbackItem(
        id=identifier,
        request_id=f"fr-{identifier}",
        position=0,
        namespace=namespace,
        adapter=adapter,
        created=at,
        feedback=feedback,
        state=ItemState.STORED,
        rollout_id=f"ro-{identifier}",
    )


def batch(identifier: str, namespace: str, adapter: str, at: datetime) -> FeedbackBatch:
    """A batch that is formed."""
    return FeedbackBatch(
        id=identifier,
        namespace=namespace,
        adapter=adapter,
        adapter_uid=f"uid-{adapter}",
        created=at,
        state=BatchState.FORMED,
    )


async def store_item(store: Store, stored: FeedbackItem, prompt: str, answer: str) -> None:
    """Store an item with its request and its rollout."""
    await store.rollouts.add(
        [rollout(stored.rollout_id or "", stored.namespace, stored.adapter, prompt, answer, stored.created)]
    )
    request = FeedbackRequest(
        id=stored.request_id,
        namespace=stored.namespace,
        adapter=stored.adapter,
        lora_id=f"{stored.namespace}/{stored.adapter}",
        mode=RequestMode.ASYNC,
        created=stored.created,
        body_hash=stored.id,
    )
    await store.feedback.accept(request, [stored])


async def learn(store: Store, formed: FeedbackBatch, members: list[str], version: int) -> FeedbackBatch:
    """Take a batch through its job into a version."""
    await store.batches.form(formed, members)
    await store.batches.submitted(formed.id, f"uid-{formed.id}", formed.created + timedelta(seconds=2))
    done = replace(
        formed,
        state=BatchState.ACCOUNTED,
        job_uid=f"uid-{formed.id}",
        phase="Succeeded",
        submitted=formed.created + timedelta(seconds=2),
        accounted=formed.created + timedelta(seconds=32),
        version=version,
        metrics={"loss": 0.41, "kl_to_parent": 0.0123, "grad_norm": 1.83, "tokens": 211.0},
        timings={name: value * (0.7 + 0.09 * (version % 7)) for name, value in _TIMINGS.items()},
        handover="Sleep",
    )
    await store.batches.account(done, [ItemOutcome(each, ItemState.IN_VERSION, version=version) for each in members])
    return done


def version(namespace: str, adapter: str, number: int, at: datetime, *, verdict: str = "Served") -> VersionSeen:
    """A version as its status shows it."""
    wave = 0.04 * math.sin(number * 1.7)
    return VersionSeen(
        namespace=namespace,
        adapter=adapter,
        number=number,
        digest=f"sha256:{number:064x}",
        created=at,
        parent=_PARENTS.get(number, number - 1) if number else None,
        job=f"bt-{adapter}-{number}" if number else None,
        job_uid=f"uid-bt-{adapter}-{number}" if number else None,
        metrics={"loss": 0.3 + 0.6 * 0.85**number + wave, "kl_to_parent": 0.01 + 0.02 * 0.9**number + wave / 20}
        if number
        else {},
        verdict=verdict,
        serving_gap_seconds=9.0 + 3 * math.sin(number) if number and verdict == "Served" else None,
    )


async def tell(store: Store, namespace: str = "team-a", adapter: str = "coder", now: datetime = NOW) -> Told:
    """Eleven versions, one of them rejected and one rolled back; items that were learned from, refused, and wait."""
    begun = now - timedelta(days=6)
    for number in range(12):
        at = begun + timedelta(hours=12 * number)
        rejected = number == 5
        await store.history.saw_versions(
            [version(namespace, adapter, number, at, verdict="Rejected" if rejected else "Served")]
        )
        if not rejected:
            before = None if number == 0 else _PARENTS.get(number, number - 1)
            await store.history.saw_served(ServiceChange(namespace, adapter, at, number, before))
        if number == 8:
            await store.history.saw_served(ServiceChange(namespace, adapter, at + timedelta(hours=3), 7, 8))
        for name, start in (("answers briefly", 0.35), ("command first", 0.2)):
            await store.history.add_score(
                ProbeScore(namespace, adapter, number, name, min(1.0, start + 0.06 * number), at)
            )
        if number:
            members = []
            for place, (prompt, answer, feedback) in enumerate(_SAID):
                stored = item(
                    f"fb-{adapter}-{number}-{place}", namespace, adapter, feedback, at - timedelta(seconds=50 - place)
                )
                if place == 3:
                    stored = replace(stored, rating=-1.0, tags=("wrong", "maths"), author="ada")
                if place == 1:
                    stored = replace(stored, correction="Reject an empty batch with 422", tags=("style",))
                await store_item(store, stored, prompt, answer)
                members.append(stored.id)
            await learn(
                store,
                batch(f"bt-{adapter}-{number}", namespace, adapter, at - timedelta(seconds=40)),
                members,
                number,
            )
            await store.feedback.answered_after(members[0], "Paris.")
    refused = replace(item(f"fb-{adapter}-bad", namespace, adapter, "", now - timedelta(minutes=40)), rating=0.0)
    refused = replace(refused, feedback="Too long to be trained on.")
    await store_item(store, refused, "Summarise the incident.", "A long answer. " * 12)
    await store.feedback.refuse(
        [ItemOutcome(refused.id, ItemState.REFUSED, None, "SampleTooLong", "the sample has 5,210 tokens; 4,096 fit")]
    )
    running = item(f"fb-{adapter}-running", namespace, adapter, "Use a table.", now - timedelta(minutes=2))
    await store_item(store, running, "Compare Sleep and Share.", "Sleep pauses serving; Share does not.")
    formed = batch(f"bt-{adapter}-running", namespace, adapter, now - timedelta(seconds=95))
    await store.batches.form(formed, [running.id])
    await store.batches.submitted(formed.id, "uid-running", now - timedelta(seconds=93))
    await store.batches.progressed(formed.id, "Training")
    waiting = replace(
        item(f"fb-{adapter}-waiting", namespace, adapter, "Say where you know it from.", now - timedelta(seconds=8)),
        rating=0.5,
        tags=("sources",),
        author="grace",
    )
    await store_item(store, waiting, "When was 0.32 released?", "It was released in autumn.")
    return Told(learned=f"fb-{adapter}-11-0", refused=refused.id, waiting=waiting.id, batch=f"bt-{adapter}-11")
