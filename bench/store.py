"""What the gateway's store takes: latency and processor time of storing a rollout and of accepting feedback, alone
and by many callers at once, on SQLite and on a PostgreSQL that is started for it (Debian's package).

    python bench/store.py                      # in a minute
    python bench/store.py --only sqlite
"""

from __future__ import annotations

import sys

# This folder: its modules would hide others of their names.
sys.path.pop(0)

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import uvloop

from claas_gateway.store.interface import Store
from claas_gateway.store.sql_store import open_store
from tests.builders.gateway_records import build_item, build_request, build_rollout
from tests.databases.postgresql import running_postgresql

CALLERS = (1, 8, 64)
CALLS = {"rollout": 4_000, "feedback": 800}
PROMPT_TOKENS = 500
RESPONSE_TOKENS = 300

Call = Callable[[], Awaitable[object]]


def rollout_call(store: Store, name: str) -> Call:
    """A rollout as of a chat."""
    answer = f"{name} " + "word " * RESPONSE_TOKENS
    rollout = build_rollout(name, answer=answer, token_ids=tuple(range(RESPONSE_TOKENS)))
    rollout = replace(rollout, prompt_token_ids=tuple(range(PROMPT_TOKENS)))
    return lambda: store.rollouts.add([rollout])


def feedback_call(store: Store, name: str) -> Call:
    """A request with one item."""
    return lambda: store.feedback.accept(build_request(name, key=name), [build_item(name, request=name)])


async def run(database: str, url: str) -> None:
    """All calls on one database."""
    async with open_store(url) as store:
        for what, call_of in (("rollout", rollout_call), ("feedback", feedback_call)):
            for callers in CALLERS:
                calls = [call_of(store, f"{what}-{callers}-{number}") for number in range(CALLS[what])]
                cpu, began = time.process_time(), time.perf_counter()
                taken = sorted(await seconds_of(calls, callers))
                cpu, took = time.process_time() - cpu, time.perf_counter() - began
                print(
                    f"| {database} | {what} | {callers} | {len(taken) / took:,.0f} "
                    f"| {taken[len(taken) // 2] * 1e3:.2f} | {taken[int(len(taken) * 0.99)] * 1e3:.1f} "
                    f"| {cpu / len(taken) * 1e6:.0f} |"
                )


async def seconds_of(calls: Sequence[Call], callers: int) -> list[float]:
    """How long each call took."""
    left = iter(calls)
    taken: list[float] = []

    async def caller() -> None:
        for call in left:
            began = time.perf_counter()
            await call()
            taken.append(time.perf_counter() - began)

    await asyncio.gather(*(caller() for _ in range(callers)))
    return taken


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("sqlite", "postgresql"))
    only = parser.parse_args().only
    print("| Database | Stored | Callers | A second | Median ms | 99th ms | CPU us |\n|---|---|---|---|---|---|---|")
    if only != "postgresql":
        with tempfile.TemporaryDirectory() as folder:
            uvloop.run(run("SQLite", f"sqlite+aiosqlite:///{folder}/gateway.db"))
    if only != "sqlite":
        with running_postgresql() as server:
            uvloop.run(run("PostgreSQL", server.url(server.create_database())))


if __name__ == "__main__":
    main()
