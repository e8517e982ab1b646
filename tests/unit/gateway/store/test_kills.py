"""What was acknowledged is there after a kill, and two replicas share the work without doing any of it twice."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from claas_gateway.records import BatchState, ItemState
from claas_gateway.store.sql_store import open_store
from tests.databases.postgresql import PostgresqlServer

pytestmark = pytest.mark.contract
ROUNDS = 3
WRITE_SECONDS = 90.0
ENOUGH_LINES = 40
SEED = 20261127


class Writer:
    """A process that writes until it is killed."""

    def __init__(self, url: str, name: str, log: Path) -> None:
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.databases.feedback_writer", url, name],
                stdout=output,
                stderr=log.with_suffix(".err").open("wb"),
            )

    def promises(self) -> list[list[str]]:
        """What it acknowledged; a last line without its end was cut by the kill."""
        return [line.split() for line in self._log.read_text().rpartition("\n")[0].splitlines()]

    def wait_for_promises(self, seconds_more: float, before: int = 0) -> None:
        """Until it has written, beyond what it had before, and then some."""
        deadline = time.monotonic() + WRITE_SECONDS
        while len(self.promises()) < before + ENOUGH_LINES:
            assert self._process.poll() is None, self._log.with_suffix(".err").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(seconds_more)

    def kill(self) -> None:
        """SIGKILL."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


def check(url: str, promises: list[list[str]]) -> None:
    """The database keeps every promise, and no item is in two batches."""
    asyncio.run(compare(url, promises))
    taken = Counter(name for words in promises if words[0] == "batch" for name in words[2:])
    assert set(taken.values()) <= {1}


async def compare(url: str, promises: list[list[str]]) -> None:
    """What is there, and what was promised."""
    async with open_store(url) as store:
        items = {item.id: item for item in (await store.feedback.page(None, None, 1, 1_000_000)).items}
        batches = {batch.id: batch for batch in await store.batches.recent(None, None, 1_000_000)}
        promised = [words[1] for words in promises if words[0] == "rollout"]
        for start in range(0, len(promised), 1_000):
            some = promised[start : start + 1_000]
            assert set(await store.rollouts.prompts(some)) == set(some)
    for kind, name, *others in promises:
        if kind == "item":
            assert name in items
        if kind == "batch":
            assert {items[member].batch_id for member in others} == {name}
        if kind == "ended":
            version, members = int(others[0]), others[1:]
            assert (batches[name].state, batches[name].version) == (BatchState.ACCOUNTED, version)
            assert {(items[each].state, items[each].version) for each in members} == {(ItemState.IN_VERSION, version)}


def test_what_was_acknowledged_outlives_kills(database_url: str, tmp_path: Path) -> None:
    dice = random.Random(SEED)
    promises: list[list[str]] = []
    for number in range(ROUNDS):
        writer = Writer(database_url, f"w{number}", tmp_path / f"w{number}.log")
        try:
            writer.wait_for_promises(dice.uniform(0, 0.5))
        finally:
            writer.kill()
        promises += writer.promises()
        check(database_url, promises)
    assert {words[0] for words in promises} == {"rollout", "item", "batch", "ended"}


@pytest.fixture
def shared_url(postgresql: PostgresqlServer, postgresql_database: str) -> str:
    return postgresql.url(postgresql.create_database(like=postgresql_database))


def test_two_replicas_take_each_item_once_while_one_of_them_is_killed(shared_url: str, tmp_path: Path) -> None:
    writers = [Writer(shared_url, f"w{number}", tmp_path / f"w{number}.log") for number in range(3)]
    try:
        for writer in writers:
            writer.wait_for_promises(0.2)
        writers[0].kill()
        time.sleep(1.0)
    finally:
        for writer in writers:
            writer.kill()
    promises = [words for writer in writers for words in writer.promises()]
    check(shared_url, promises)
    by_replica = Counter(words[1].split("-")[0] for words in promises if words[0] == "batch")
    assert len(by_replica) == len(writers)


def test_two_replicas_that_start_at_once_make_the_tables_once(postgresql: PostgresqlServer) -> None:
    url = postgresql.url(postgresql.create_database())

    async def start_all() -> None:
        async def start() -> None:
            async with open_store(url) as store:
                assert await store.healthy() is None

        await asyncio.gather(*(start() for _ in range(4)))

    asyncio.run(start_all())


def test_a_database_that_restarts_is_waited_for(
    postgresql: PostgresqlServer, shared_url: str, tmp_path: Path
) -> None:
    writer = Writer(shared_url, "w", tmp_path / "w.log")
    try:
        writer.wait_for_promises(0.1)
        postgresql.crash()
        before = len(writer.promises())
        postgresql.start()
        writer.wait_for_promises(0.0, before)
    finally:
        writer.kill()
    check(shared_url, writer.promises())
