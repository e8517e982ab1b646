"""Rollouts are stored whole, and found by what feedback says of them."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from claas_gateway.records import Evidence
from claas_gateway.rollouts.hashing import answer_hash, prompt_hash
from claas_gateway.store.interface import Store
from tests.builders.gateway_records import after, build_rollout

ANSWER = answer_hash("A promise with an end.")
PROMPT = prompt_hash("What is a lease?")


@pytest.mark.parametrize(
    "rollout",
    [
        build_rollout("whole"),
        build_rollout("of-a-base-model", adapter=None),
        build_rollout("odd-texts", prompt="a NUL \0 and a lone \ud800", answer="\udfff\0", user="Zoë\0"),
        replace(
            build_rollout("incomplete"),
            evidence=Evidence.NONE,
            prompt_token_ids=(),
            response_token_ids=(),
            response_logprobs=(),
            version=None,
            finish_reason=None,
            incomplete="ClientGone",
        ),
        replace(build_rollout("wide"), request={"seed": 2**70, "stop": ["\ud83d"], "nested": {"none": None}}),
    ],
    ids=lambda rollout: rollout.id,
)
async def test_a_rollout_comes_back_as_it_was_added(store: Store, rollout: object) -> None:
    await store.rollouts.add([rollout])  # type: ignore[list-item]
    assert await store.rollouts.get(rollout.id) == rollout  # type: ignore[attr-defined]


@pytest.mark.parametrize("unknown", ["never", "", "\0", "\ud800", "x" * 10_000])
async def test_there_is_no_rollout_by_a_name_that_was_never_given(store: Store, unknown: str) -> None:
    await store.rollouts.add([build_rollout("one")])
    assert await store.rollouts.get(unknown) is None
    assert await store.rollouts.find(unknown, None, ANSWER, None) is None


async def test_the_newest_rollout_with_the_prompt_is_found_and_without_one_the_newest(store: Store) -> None:
    await store.rollouts.add(
        [
            build_rollout("old", created=after(1)),
            build_rollout("new", created=after(2)),
            build_rollout("newest-other-prompt", created=after(3), prompt="What is a lock?"),
            build_rollout("other-answer", created=after(9), answer="No."),
            build_rollout("other-adapter", created=after(9), adapter="writer"),
            build_rollout("base-model", created=after(8), adapter=None),
            build_rollout("other-tenant", created=after(10), namespace="rivals"),
        ]
    )

    async def found(namespace: str | None, adapter: str | None, prompt: str | None) -> str | None:
        rollout = await store.rollouts.find(namespace, adapter, ANSWER, prompt)
        return None if rollout is None else rollout.id

    assert await found("team", "coder", PROMPT) == "new"
    assert await found("team", "coder", None) == "newest-other-prompt"
    assert await found("team", "coder", prompt_hash("something else")) == "newest-other-prompt"
    assert await found("team", None, PROMPT) == "other-adapter"
    assert await found(None, None, PROMPT) == "other-tenant"
    assert await found("nobody", "coder", PROMPT) is None


async def test_prompts_are_told_for_those_that_are_there(store: Store) -> None:
    await store.rollouts.add([build_rollout("one"), build_rollout("two", prompt="Why?")])
    assert await store.rollouts.prompts(["two", "gone", "one"]) == {"one": "What is a lease?", "two": "Why?"}
    assert await store.rollouts.prompts([]) == {}


async def test_a_rollout_that_can_not_be_stored_fails_its_own_caller_alone(store: Store) -> None:
    calls = [store.rollouts.add([build_rollout(f"good-{number}")]) for number in range(20)]
    calls.insert(7, store.rollouts.add([build_rollout("with-it"), build_rollout("bad", token_ids=(-1,))]))
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [place for place, result in enumerate(results) if result is not None] == [7]
    for number in range(20):
        assert await store.rollouts.get(f"good-{number}") is not None
    assert await store.rollouts.get("with-it") is None


async def test_a_rollout_is_stored_although_its_caller_is_cancelled(store: Store) -> None:
    call = asyncio.create_task(store.rollouts.add([build_rollout("one")]))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await store.rollouts.add([build_rollout("two")])
    assert await store.rollouts.get("one") is not None
