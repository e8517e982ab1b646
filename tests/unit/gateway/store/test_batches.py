"""A batch is formed, submitted and accounted for once, and each of its items comes to one end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from claas_gateway.records import BatchState, FeedbackBatch, ItemOutcome, ItemState
from claas_gateway.store.interface import Store
from tests.builders.gateway_records import START, after, build_batch, build_item, build_request


async def accept(store: Store, *names: str) -> None:
    items = [build_item(name, position=place) for place, name in enumerate(names)]
    await store.feedback.accept(build_request("request"), items)


async def states(store: Store, *names: str) -> list[tuple[ItemState, str | None, int | None, str | None]]:
    found = [await store.feedback.item(name) for name in names]
    return [(item.state, item.batch_id, item.version, item.reason) for item in found if item is not None]


def ended(batch: FeedbackBatch, **changes: object) -> FeedbackBatch:
    return replace(batch, state=BatchState.ACCOUNTED, accounted=after(60), **changes)  # type: ignore[arg-type]


def learned(names: Sequence[str], version: int) -> list[ItemOutcome]:
    return [ItemOutcome(name, ItemState.IN_VERSION, version=version) for name in names]


async def test_a_batch_has_its_members_in_the_order_it_was_formed_in(store: Store) -> None:
    await accept(store, "a", "b", "c")
    batch = build_batch("batch")
    assert await store.batches.form(batch, ["c", "a"])
    assert [item.id for item in await store.feedback.items_of_batch("batch")] == ["c", "a"]
    assert await states(store, "a", "b") == [
        (ItemState.BATCHED, "batch", None, None),
        (ItemState.STORED, None, None, None),
    ]
    assert await store.batches.get("batch") == batch
    assert await store.batches.get("none") is None


@pytest.mark.parametrize("wanted", [["b", "a"], ["b", "unknown"]], ids=["taken", "unknown"])
async def test_nothing_is_written_of_a_batch_that_lacks_a_member(store: Store, wanted: list[str]) -> None:
    await accept(store, "a", "b")
    assert await store.batches.form(build_batch("first"), ["a"])
    assert not await store.batches.form(build_batch("second"), wanted)
    assert await store.batches.get("second") is None
    assert await states(store, "b") == [(ItemState.STORED, None, None, None)]


@pytest.mark.parametrize("members", [[], ["a", "a"]])
async def test_a_batch_has_members_and_each_once(store: Store, members: list[str]) -> None:
    await accept(store, "a")
    with pytest.raises(ValueError, match="members"):
        await store.batches.form(build_batch("batch"), members)


async def test_a_batch_goes_from_formed_to_submitted_to_accounted(store: Store) -> None:
    await accept(store, "a", "b")
    batch = build_batch("batch")
    await store.batches.form(batch, ["a", "b"])
    await store.batches.submitted("batch", "uid", after(5))
    await store.batches.progressed("batch", "Running")
    submitted = replace(batch, state=BatchState.SUBMITTED, job_uid="uid", submitted=after(5), phase="Running")
    assert await store.batches.get("batch") == submitted
    assert await store.batches.unaccounted() == [submitted]
    assert await states(store, "a") == [(ItemState.IN_JOB, "batch", None, None)]
    measured = {"metrics": {"loss": 0.25, "tokens": 12.0}, "timings": {"step": 3.5}, "handover": "Sleep"}
    end = ended(submitted, version=4, weights="tinker://run/4", served=True, **measured)
    refused = ItemOutcome("b", ItemState.REFUSED, reason="TooLong", message="too many tokens")
    assert await store.batches.account(end, [*learned(["a"], 4), refused])
    assert await store.batches.get("batch") == end
    assert await store.batches.unaccounted() == []
    assert await states(store, "a", "b") == [
        (ItemState.IN_VERSION, "batch", 4, None),
        (ItemState.REFUSED, "batch", None, "TooLong"),
    ]
    assert [item.id for item in await store.feedback.items_of_version("team", "coder", 4)] == ["a"]
    assert await store.feedback.items_of_version("team", "coder", 5) == []


async def test_a_batch_that_is_accounted_for_stays_as_it_is(store: Store) -> None:
    await accept(store, "a")
    batch = build_batch("batch")
    await store.batches.form(batch, ["a"])
    assert await store.batches.account(ended(batch, version=4), learned(["a"], 4))
    assert not await store.batches.account(ended(batch, version=5), learned(["a"], 5))
    await store.batches.submitted("batch", "late", after(99))
    await store.batches.progressed("batch", "Late")
    await store.feedback.refuse([ItemOutcome("a", ItemState.REFUSED, reason="Late")])
    assert await store.batches.get("batch") == ended(batch, version=4)
    assert await states(store, "a") == [(ItemState.IN_VERSION, "batch", 4, None)]


async def test_the_rest_of_a_batch_trains_in_a_new_one(store: Store) -> None:
    await accept(store, "a", "b", "c")
    batch = build_batch("batch")
    await store.batches.form(batch, ["c", "b", "a"])
    await store.batches.submitted("batch", "uid", after(5))
    rest = build_batch("rest", created=after(60))
    bad = [ItemOutcome("b", ItemState.REFUSED, reason="TooLong")]
    assert await store.batches.account(ended(batch, reason="InvalidSamples"), bad, rest)
    assert [item.id for item in await store.feedback.items_of_batch("rest")] == ["c", "a"]
    assert await states(store, "a", "b") == [
        (ItemState.BATCHED, "rest", None, None),
        (ItemState.REFUSED, "batch", None, "TooLong"),
    ]
    assert await store.batches.unaccounted() == [rest]
    stored = await store.batches.get("batch")
    assert stored is not None
    assert (stored.job_uid, stored.submitted) == ("uid", after(5))


async def test_a_batch_does_not_end_while_an_item_has_no_end(store: Store) -> None:
    await accept(store, "a", "b")
    batch = build_batch("batch")
    await store.batches.form(batch, ["a", "b"])
    with pytest.raises(ValueError, match="without an outcome"):
        await store.batches.account(ended(batch, version=4), learned(["a"], 4))
    assert await store.batches.unaccounted() == [batch]
    assert await states(store, "a") == [(ItemState.BATCHED, "batch", None, None)]


async def test_an_outcome_counts_for_members_alone(store: Store) -> None:
    await accept(store, "a", "stranger")
    batch = build_batch("batch")
    await store.batches.form(batch, ["a"])
    await store.batches.account(ended(batch, version=4), learned(["a", "stranger"], 4))
    assert await states(store, "stranger") == [(ItemState.STORED, None, None, None)]


async def test_batches_are_listed_by_adapter_and_age(store: Store) -> None:
    for number, (namespace, adapter) in enumerate(
        [("team", "coder"), ("team", "writer"), ("rivals", "coder"), ("team", "coder")]
    ):
        await accept_one(store, str(number), namespace, adapter)
    assert [each.id for each in await store.batches.unaccounted()] == ["0", "1", "2", "3"]
    assert [each.id for each in await store.batches.unaccounted("team", "coder")] == ["0", "3"]
    assert [each.id for each in await store.batches.recent("team", None, 2)] == ["3", "1"]
    assert [each.id for each in await store.batches.recent(None, None, 9)] == ["3", "2", "1", "0"]
    assert {each.id for each in await store.batches.newest()} == {"1", "2", "3"}


async def accept_one(store: Store, name: str, namespace: str, adapter: str) -> None:
    created = after(float(name))
    request = build_request(name, namespace=namespace)
    item = build_item(name, request=name, namespace=namespace, adapter=adapter)
    await store.feedback.accept(request, [item])
    assert await store.batches.form(build_batch(name, namespace=namespace, adapter=adapter, created=created), [name])
    assert created >= START
