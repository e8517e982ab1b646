"""When the database fails, nothing is done twice, and clients are told to come again."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from claas_gateway.errors import NotNow
from claas_gateway.records import BatchState, ItemOutcome, ItemState, ServiceChange
from claas_gateway.store.database import sqlite
from claas_gateway.store.database.transactions import Database
from claas_gateway.store.interface import Store
from claas_gateway.store.sql_store import open_store
from tests.builders.gateway_records import START, after, build_batch, build_item, build_request, build_rollout

Work = Callable[[AsyncConnection], Awaitable[object]]


@pytest.fixture
def lost_answers(monkeypatch: pytest.MonkeyPatch, store: Store) -> Store:
    """A store whose connection is lost after each commit, before its answer came."""
    real = Database._repeating

    async def repeating(self: Database, engine: AsyncEngine, work: Work) -> object:
        await real(self, engine, work)
        return await real(self, engine, work)

    monkeypatch.setattr(Database, "_repeating", repeating)
    return store


async def test_what_was_committed_is_not_done_again_when_its_answer_was_lost(lost_answers: Store) -> None:
    store = lost_answers
    accepted = await store.feedback.accept(
        build_request("request", key="once"),
        [build_item("a", user="u-1"), build_item("b", position=1), build_item("c", position=2)],
    )
    assert not accepted.repeated
    assert [item.id for item in accepted.items] == ["a", "b", "c"]
    batch = build_batch("batch")
    assert await store.batches.form(batch, ["a", "b"])
    await store.batches.submitted("batch", "uid", after(1))
    ended = replace(batch, state=BatchState.ACCOUNTED, accounted=after(2), version=4)
    outcomes = [ItemOutcome("a", ItemState.IN_VERSION, version=4)]
    assert await store.batches.account(ended, outcomes, build_batch("rest"))
    assert [item.id for item in await store.feedback.items_of_batch("rest")] == ["b"]
    assert not await store.batches.account(replace(ended, accounted=after(3)), outcomes)
    await store.history.saw_served(ServiceChange("team", "coder", START, 4, None))
    assert len(await store.history.changes("team", "coder")) == 1
    forgotten = await store.forget_user(None, None, "u-1")
    assert (forgotten.items, forgotten.learned) == (1, (("team", "coder", 4),))


async def test_clients_are_told_to_come_again_while_the_file_is_locked_from_outside(
    monkeypatch: pytest.MonkeyPatch, sqlite_file: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(sqlite, "_BUSY_MILLISECONDS", 20)
    path = shutil.copy(sqlite_file, tmp_path)
    async with open_store(f"sqlite+aiosqlite:///{path}") as store:
        await store.rollouts.add([build_rollout("before")])
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(NotNow):
            await store.rollouts.add([build_rollout("meanwhile")])
        with pytest.raises(NotNow):
            await store.feedback.accept(build_request("request"), [build_item("meanwhile")])
        assert await store.rollouts.get("before") is not None
        other.execute("ROLLBACK")
        other.close()
        await store.rollouts.add([build_rollout("afterwards")])
        await store.feedback.accept(build_request("request"), [build_item("afterwards")])
        assert await store.rollouts.get("meanwhile") is None
        assert await store.healthy() is None


async def test_clients_are_told_to_come_again_while_the_server_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = _Refusing()
    database = Database(engine, engine)  # type: ignore[arg-type]

    async def no_pause(seconds: float) -> None:
        engine.pauses.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", no_pause)

    async def work(connection: AsyncConnection) -> None:
        raise AssertionError("there is no connection")

    with pytest.raises(NotNow):
        await database.write(work)
    assert engine.pauses == [0.05, 0.1, 0.2, 0.4, 0.8]


class _Refusing:
    """An engine whose server refuses connections."""

    def __init__(self) -> None:
        self.pauses: list[float] = []

    def begin(self) -> AsyncEngine:
        raise ConnectionRefusedError
