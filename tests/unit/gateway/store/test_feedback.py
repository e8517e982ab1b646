"""Feedback is accepted once, whole, and followed item by item."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import replace

import pytest
from sqlalchemy.exc import IntegrityError

from claas_gateway.errors import Conflicting
from claas_gateway.records import ItemOutcome, ItemState, RequestMode
from claas_gateway.store.interface import Accepted, ItemFilter, Store
from tests.builders.gateway_records import after, build_batch, build_item, build_request


async def test_a_request_comes_back_with_its_items_in_their_order(store: Store) -> None:
    request = build_request("request", mode=RequestMode.SYNC, key="once")
    batch = build_batch("batch")
    items = [
        replace(build_item("b", position=0, tags=("tone", "length\0"), rating=0.5, author="Zoë", user="u-1")),
        build_item("a", position=1, state=ItemState.BATCHED, batch="batch", feedback="\ud800 \0 ünï"),
        replace(build_item("c", position=2, state=ItemState.REFUSED), reason="RolloutNotFound", message="unknown"),
        build_item("d", position=3, state=ItemState.BATCHED, batch="batch"),
    ]
    accepted = await store.feedback.accept(request, items, [batch])
    assert (accepted.request, accepted.items, accepted.repeated) == (request, tuple(items), False)
    stored = replace(items[0], tags=("tone", "length\ufffd"))
    known = await store.feedback.request("request")
    assert known is not None
    assert (known.request, known.items) == (request, (stored, *items[1:]))
    assert await store.feedback.by_key("team", "ci", "once") == known
    assert await store.feedback.by_key("team", "ci", "never") is None
    assert await store.feedback.item("a") == items[1]
    assert await store.feedback.items_of_batch("batch") == [items[1], items[3]]
    assert await store.batches.get("batch") == batch
    assert await store.feedback.request("\0") is None
    assert await store.feedback.item("no") is None


@pytest.mark.parametrize(
    ("second", "outcome"),
    [
        (build_request("second", key="once"), "repeated"),
        (build_request("second", key="once", body_hash="another"), "refused"),
        (build_request("second", key="twice"), "new"),
        (build_request("second", key="once", key_name="other"), "new"),
        (build_request("second", key="once", namespace="rivals"), "new"),
        (build_request("second"), "new"),
    ],
    ids=["same", "another-body", "another-key", "another-api-key", "another-tenant", "no-key"],
)
async def test_an_idempotency_key_stands_for_one_request(store: Store, second: object, outcome: str) -> None:
    first = build_request("first", key="once")
    await store.feedback.accept(first, [build_item("one", request="first")])
    again = store.feedback.accept(second, [build_item("two", request="second")])  # type: ignore[arg-type]
    if outcome == "refused":
        with pytest.raises(Conflicting):
            await again
    else:
        accepted = await again
        assert accepted.repeated is (outcome == "repeated")
        assert accepted.items[0].id == ("one" if outcome == "repeated" else "two")
    assert (await store.feedback.item("two") is not None) is (outcome == "new")


async def test_equal_feedback_without_a_key_is_stored_as_often_as_it_comes(store: Store) -> None:
    for number in range(3):
        await store.feedback.accept(build_request(f"r{number}"), [build_item(f"i{number}", request=f"r{number}")])
    assert (await store.feedback.page("team", "coder", 1, 10)).total == 3


async def test_of_requests_with_one_key_at_one_time_one_is_new(store: Store) -> None:
    async def accept(name: str) -> Accepted:
        return await store.feedback.accept(build_request(name, key="once"), [build_item(name, request=name)])

    accepted = await asyncio.gather(*(accept(f"r{number}") for number in range(8)))
    assert sorted(each.repeated for each in accepted) == [False] + [True] * 7
    assert len({each.request.id for each in accepted}) == 1


async def test_nothing_of_a_request_is_stored_if_one_item_can_not_be(store: Store) -> None:
    items = [build_item("good"), build_item("bad", position=1, batch="of-nobody", state=ItemState.BATCHED)]
    with pytest.raises(IntegrityError):
        await store.feedback.accept(build_request("request"), items)
    assert await store.feedback.request("request") is None
    assert await store.feedback.item("good") is None


async def test_a_request_that_can_not_be_stored_fails_its_own_caller_alone(store: Store) -> None:
    def accept(name: str, batch: str | None) -> Awaitable[Accepted]:
        item = build_item(f"item-{name}", request=name, batch=batch)
        return store.feedback.accept(build_request(name, key=name), [item])

    calls = [accept(f"good-{number}", None) for number in range(6)]
    calls.insert(3, accept("bad", "of-nobody"))
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [isinstance(result, IntegrityError) for result in results] == [place == 3 for place in range(7)]
    assert not any(result.repeated for result in results if isinstance(result, Accepted))
    assert (await store.feedback.page(None, None, 1, 1)).total == 6


async def test_a_page_shows_the_newest_first_and_counts_all(store: Store) -> None:
    items = [build_item(f"i{number}", position=number, created=after(number)) for number in range(5)]
    await store.feedback.accept(build_request("request"), items)
    await store.feedback.accept(
        build_request("other", namespace="rivals"), [build_item("theirs", request="other", namespace="rivals")]
    )
    page = await store.feedback.page("team", "coder", 2, 2)
    assert ([item.id for item in page.items], page.total) == (["i2", "i1"], 5)
    assert (await store.feedback.page(None, None, 1, 10)).total == 6
    assert (await store.feedback.page("team", "writer", 1, 10)).total == 0
    assert (await store.feedback.page("team", "coder", 9, 2)).items == ()


@pytest.mark.parametrize(
    ("only", "found"),
    [
        (ItemFilter(), ["liked", "meh", "plain", "refused"]),
        (ItemFilter(state=ItemState.REFUSED), ["refused"]),
        (ItemFilter(tag="tone"), ["liked", "meh"]),
        (ItemFilter(tag="ton"), []),
        (ItemFilter(tag=","), []),
        (ItemFilter(lowest_rating=0.5), ["liked"]),
        (ItemFilter(highest_rating=0.5), ["meh"]),
        (ItemFilter(lowest_rating=0.0, highest_rating=1.0, tag="tone"), ["liked", "meh"]),
    ],
    ids=str,
)
async def test_a_page_shows_the_items_that_pass_its_filter(store: Store, only: ItemFilter, found: list[str]) -> None:
    items = [
        build_item("liked", position=0, rating=1.0, tags=("tone", "length")),
        build_item("meh", position=1, rating=0.0, tags=("length", "tone")),
        build_item("plain", position=2, tags=("tone of voice",)),
        build_item("refused", position=3, state=ItemState.REFUSED),
    ]
    await store.feedback.accept(build_request("request"), items)
    page = await store.feedback.page("team", "coder", 1, 10, only)
    assert (sorted(item.id for item in page.items), page.total) == (found, len(found))


async def test_items_wait_oldest_first_and_are_counted_by_state(store: Store) -> None:
    await store.feedback.accept(build_request("late"), [build_item("late", request="late", created=after(9))])
    await store.feedback.accept(
        build_request("early"),
        [
            build_item("early-2", request="early", position=1),
            build_item("early-1", request="early", position=0),
            build_item("refused", request="early", position=2, state=ItemState.REFUSED),
            build_item("writers", request="early", position=3, adapter="writer"),
        ],
    )
    waiting = await store.feedback.waiting("team", "coder")
    assert [item.id for item in waiting] == ["early-1", "early-2", "late"]
    assert await store.feedback.waiting_adapters() == [("team", "coder"), ("team", "writer")]
    assert await store.feedback.counts() == {
        ("team", "coder"): {ItemState.STORED: 3, ItemState.REFUSED: 1},
        ("team", "writer"): {ItemState.STORED: 1},
    }


async def test_what_is_final_is_not_refused_again(store: Store) -> None:
    await store.feedback.accept(build_request("request"), [build_item("one")])
    for reason in ("First", "Second"):
        await store.feedback.refuse([ItemOutcome("one", ItemState.REFUSED, reason=reason, message=reason)])
    item = await store.feedback.item("one")
    assert item is not None
    assert (item.state, item.reason, item.message) == (ItemState.REFUSED, "First", "First")


async def test_the_answer_of_the_new_version_is_written_down(store: Store) -> None:
    await store.feedback.accept(build_request("request"), [build_item("one")])
    await store.feedback.answered_after("one", "Until noon.\0")
    item = await store.feedback.item("one")
    assert item is not None
    assert item.answer_after == "Until noon.\0"
