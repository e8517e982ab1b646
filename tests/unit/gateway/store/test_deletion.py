"""What is deleted is gone, by user and by age; what accounting needs stays, without texts."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from claas_gateway.records import BatchState, FeedbackItem, ItemOutcome, ItemState
from claas_gateway.store.database import sqlite
from claas_gateway.store.interface import Forgotten, Store
from claas_gateway.store.sql_store import open_store
from tests.builders.gateway_records import START, after, build_batch, build_item, build_request, build_rollout

SECRET = "the word that nobody may find again"


async def learn(store: Store, batch: str, names: Sequence[str], version: int) -> None:
    """Items come into a version."""
    formed = build_batch(batch)
    assert await store.batches.form(formed, names)
    end = replace(formed, state=BatchState.ACCOUNTED, accounted=after(60), version=version)
    outcomes = [ItemOutcome(name, ItemState.IN_VERSION, version=version) for name in names]
    assert await store.batches.account(end, outcomes)


async def item(store: Store, name: str) -> FeedbackItem:
    found = await store.feedback.item(name)
    assert found is not None
    return found


def without_texts(before: FeedbackItem, **changes: object) -> FeedbackItem:
    erased = replace(before, feedback="", correction="", tags=(), rollout_id=None, answer_after=None, erased=True)
    return replace(erased, **changes)  # type: ignore[arg-type]


async def test_a_user_is_forgotten_and_the_versions_that_learned_are_named(store: Store) -> None:
    await store.rollouts.add(
        [build_rollout("hers", user="u-1"), build_rollout("his", user="u-2"), build_rollout("nobodys")]
    )
    items = [
        build_item("learned", position=0, user="u-1", tags=("tone",)),
        build_item("by-rollout", position=1, rollout="hers"),
        build_item("written-by-her", position=2, author="u-1"),
        build_item("in-a-job", position=3, user="u-1"),
        build_item("in-a-batch", position=4, user="u-1"),
        build_item("waiting", position=5, user="u-1", author="editor"),
        build_item("his", position=6, user="u-2", rollout="his", author="editor"),
    ]
    await store.feedback.accept(build_request("request"), items)
    await learn(store, "b1", ["learned", "by-rollout", "written-by-her"], 4)
    await store.feedback.answered_after("learned", "after")
    await store.batches.form(build_batch("b2"), ["in-a-job"])
    await store.batches.submitted("b2", "uid", after(1))
    await store.batches.form(build_batch("b3"), ["in-a-batch"])
    before = {each.id: await item(store, each.id) for each in items}

    assert await store.forget_user("team", None, "u-1") == Forgotten(
        1, 6, (("team", "coder", 4),), (("team", "coder", "b2"), ("team", "coder", "b3"))
    )
    nobody = {"user": None, "author": None}
    for name in ("learned", "by-rollout", "written-by-her", "in-a-job", "in-a-batch"):
        assert await item(store, name) == without_texts(before[name], **nobody)
    refused = await item(store, "waiting")
    assert refused == without_texts(
        before["waiting"], **nobody, state=ItemState.REFUSED, reason="RolloutDeleted", message=refused.message
    )
    assert await item(store, "his") == before["his"]
    assert await store.rollouts.get("hers") is None
    assert await store.rollouts.get("his") is not None
    assert await store.rollouts.get("nobodys") is not None
    assert await store.forget_user("team", None, "u-1") == Forgotten(0, 0, ())


async def test_what_is_in_a_batch_comes_to_its_end_after_its_user_was_forgotten(store: Store) -> None:
    await store.feedback.accept(build_request("request"), [build_item("one", user="u-1")])
    await store.batches.form(build_batch("batch"), ["one"])
    await store.batches.submitted("batch", "uid", after(1))
    await store.forget_user(None, None, "u-1")
    end = replace(build_batch("batch"), state=BatchState.ACCOUNTED, accounted=after(2), version=4)
    assert await store.batches.account(end, [ItemOutcome("one", ItemState.IN_VERSION, version=4)])
    await store.feedback.answered_after("one", SECRET)
    ended = await item(store, "one")
    assert (ended.state, ended.version, ended.answer_after) == (ItemState.IN_VERSION, 4, None)


@pytest.mark.parametrize(
    ("namespace", "adapter", "left"),
    [
        (None, None, []),
        ("team", None, ["rivals/coder"]),
        ("team", "coder", ["rivals/coder", "team/writer"]),
        ("nobody", None, ["rivals/coder", "team/coder", "team/writer"]),
    ],
)
async def test_a_user_is_forgotten_within_what_the_caller_sees(
    store: Store, namespace: str | None, adapter: str | None, left: list[str]
) -> None:
    places = [("team", "coder"), ("team", "writer"), ("rivals", "coder")]
    for place in places:
        name = "/".join(place)
        await store.rollouts.add([build_rollout(name, namespace=place[0], adapter=place[1], user="u-1")])
        await store.feedback.accept(
            build_request(name, namespace=place[0]),
            [build_item(name, request=name, namespace=place[0], adapter=place[1], user="u-1")],
        )
    forgotten = await store.forget_user(namespace, adapter, "u-1")
    assert (forgotten.rollouts, forgotten.items) == (3 - len(left), 3 - len(left))
    names = sorted("/".join(place) for place in places)
    assert [name for name in names if await store.rollouts.get(name) is not None] == left
    assert [name for name in names if not (await item(store, name)).erased] == left


async def test_what_is_old_expires_but_what_open_items_need(store: Store) -> None:
    await store.rollouts.add(
        [
            build_rollout("old"),
            build_rollout("old-but-needed"),
            build_rollout("young", created=after(100)),
            *(build_rollout(f"many-{number}") for number in range(1200)),
        ]
    )
    items = [
        build_item("learned", position=0, rollout="old", user="u-1", author="editor", rating=0.5),
        build_item("waiting", position=1, rollout="old-but-needed"),
        build_item("young", position=2, created=after(100)),
    ]
    await store.feedback.accept(build_request("request"), items)
    await learn(store, "batch", ["learned", "young"], 4)
    before = {each.id: await item(store, each.id) for each in items}

    assert await store.expire(after(50)) == 1202
    assert await item(store, "learned") == without_texts(before["learned"])
    assert await item(store, "waiting") == before["waiting"]
    assert await item(store, "young") == before["young"]
    assert await store.rollouts.prompts(["old", "old-but-needed", "young"]) == {
        "old-but-needed": "What is a lease?",
        "young": "What is a lease?",
    }
    assert await store.expire(after(50)) == 0
    # Its user is still known: whoever deletes their data hears of the version.
    assert (await store.forget_user(None, None, "u-1")).learned == (("team", "coder", 4),)


@pytest.mark.parametrize("way", ["by user", "by age"])
async def test_deleted_texts_are_in_none_of_the_files_of_sqlite(sqlite_file: Path, tmp_path: Path, way: str) -> None:
    shutil.copy(sqlite_file, tmp_path)

    def content() -> bytes:
        return b"".join(each.read_bytes() for each in tmp_path.iterdir())

    async with open_store(f"sqlite+aiosqlite:///{tmp_path}/gateway.db") as store:
        long = SECRET * 300
        await store.rollouts.add([build_rollout(f"r{number}", answer=long, user="u-1") for number in range(50)])
        items = [
            build_item(f"i{number}", position=number, feedback=long, user="u-1", tags=(SECRET,), rollout=f"r{number}")
            for number in range(50)
        ]
        await store.feedback.accept(build_request("request"), items)
        await learn(store, "batch", [each.id for each in items], 4)
        before = content()
        assert SECRET.encode() in before
        if way == "by user":
            await store.forget_user("team", None, "u-1")
        else:
            await store.expire(START + timedelta(days=1))
        assert SECRET.encode() not in content()
        assert len(content()) < len(before) / 4


async def test_pages_leave_the_file_in_parts_between_which_others_write(
    sqlite_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free: list[int] = []
    count = sqlite._free_pages

    def counted(connection: sqlite3.Connection) -> int:
        free.append(count(connection))
        return free[-1]

    monkeypatch.setattr(sqlite, "_free_pages", counted)
    monkeypatch.setattr(sqlite, "PURGED_PAGES", 4)
    path = shutil.copy(sqlite_file, tmp_path)
    async with open_store(f"sqlite+aiosqlite:///{path}") as store:
        await store.rollouts.add([build_rollout(f"r{place}", user="u-1", answer="x" * 9_000) for place in range(8)])
        await store.forget_user(None, None, "u-1")
    parts = [before - left for before, left in zip(free[::2], free[1::2], strict=True)]
    assert free[-1] == 0
    assert len(parts) > 2
    assert max(parts) <= 4
