"""Versions, changes of service and scores are kept, each once."""

from __future__ import annotations

from dataclasses import replace

from claas_gateway.records import BatchState, ItemOutcome, ItemState, ProbeScore, ServiceChange, VersionSeen
from claas_gateway.store.interface import AdapterHistory, Store
from tests.builders.gateway_records import after, build_batch, build_item, build_request


def version(number: int, **changes: object) -> VersionSeen:
    seen = VersionSeen(
        namespace="team",
        adapter="coder",
        number=number,
        digest=f"sha256:{number}",
        created=after(number),
        parent=number - 1 or None,
        job=f"job-{number}",
        job_uid=f"uid-{number}",
        metrics={"loss": 1.0 / number},
        verdict="pending",
    )
    return replace(seen, **changes)  # type: ignore[arg-type]


def change(number: int, previous: int | None, at: float) -> ServiceChange:
    return ServiceChange("team", "coder", after(at), number, previous)


async def test_versions_are_kept_with_what_changed_of_them(store: Store) -> None:
    await store.history.saw_versions([version(2), version(1)])
    await store.history.saw_versions([version(2, verdict="good", serving_gap_seconds=1.5)])
    await store.history.saw_versions([version(2, verdict="rejected"), version(3, weights="tinker://run/3")])
    await store.history.saw_versions([])
    assert await store.history.versions("team", "coder") == [
        version(1),
        version(2, verdict="rejected", serving_gap_seconds=1.5),
        version(3, weights="tinker://run/3"),
    ]
    assert await store.history.versions("team", "writer") == []


async def test_a_version_is_found_by_the_job_that_made_it(store: Store) -> None:
    await store.history.saw_versions([version(1), version(2)])
    assert await store.history.made_by("team", "coder", "job-2") == version(2)
    assert await store.history.made_by("team", "coder", "job-3") is None
    assert await store.history.made_by("rivals", "coder", "job-2") is None


async def test_a_change_of_service_is_written_down_once(store: Store) -> None:
    seen = [change(1, None, 0), change(1, None, 1), change(2, 1, 2), change(1, 2, 3), change(1, 2, 4)]
    for each in seen:
        await store.history.saw_served(each)
    assert await store.history.changes("team", "coder") == [seen[0], seen[2], seen[3]]


async def test_a_change_that_a_replica_saw_late_is_not_taken_for_a_rollback(store: Store) -> None:
    await store.history.saw_served(change(1, None, 0))
    await store.history.saw_served(change(2, 1, 5))
    await store.history.saw_served(change(1, 2, 4))
    assert [each.version for each in await store.history.changes("team", "coder")] == [1, 2]


async def test_the_last_score_of_a_name_counts(store: Store) -> None:
    first = ProbeScore("team", "coder", 1, "complies", 0.25, after(1))
    second = replace(first, value=0.5, at=after(2))
    of_another = replace(first, version=2)
    other_name = replace(first, name="brief")
    for score in (of_another, first, second, other_name):
        await store.history.add_score(score)
    assert await store.history.scores("team", "coder") == {"brief": [other_name], "complies": [second, of_another]}


async def test_adapters_are_known_by_their_versions_or_their_service(store: Store) -> None:
    await store.history.saw_versions([version(1), version(2)])
    await store.history.saw_versions([version(9, adapter="writer")])
    await store.history.saw_served(change(2, None, 1))
    await store.history.saw_served(change(1, 2, 2))
    await store.history.saw_served(replace(change(4, None, 1), namespace="rivals"))
    assert await store.history.adapters() == [
        AdapterHistory("rivals", "coder", None, 4),
        AdapterHistory("team", "coder", version(2), 1),
        AdapterHistory("team", "writer", version(9, adapter="writer"), None),
    ]


async def test_an_adapter_that_was_begun_anew_does_not_inherit_what_its_predecessors_versions_learned_from(
    store: Store,
) -> None:
    for name in ("old", "new"):
        await store.feedback.accept(build_request(f"request-{name}"), [build_item(name, request=f"request-{name}")])
        batch = build_batch(f"batch-{name}")
        await store.batches.form(batch, [name])
        await store.batches.submitted(batch.id, f"uid-{name}", after(1))
        end = replace(batch, state=BatchState.ACCOUNTED, job_uid=f"uid-{name}", accounted=after(2), version=1)
        await store.batches.account(end, [ItemOutcome(name, ItemState.IN_VERSION, version=1)])
        await store.history.saw_versions([version(1, job_uid=f"uid-{name}")])
        assert [item.id for item in await store.feedback.items_of_version("team", "coder", 1)] == [name]
