"""A store on either database: SQLite in the fast tier, PostgreSQL among the contract tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from claas_gateway.store.interface import Store
from claas_gateway.store.sql_store import open_store
from tests.databases.postgresql import PostgresqlServer, running_postgresql

DATABASES = ("sqlite", pytest.param("postgresql", marks=pytest.mark.contract))


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresqlServer]:
    with running_postgresql() as server:
        yield server


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/gateway.db"
    return empty_database(request.getfixturevalue("postgresql"))


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    async with open_store(database_url) as opened:
        yield opened


_made = 0


def empty_database(server: PostgresqlServer) -> str:
    """URL of a new database of the server."""
    global _made
    _made += 1
    name = f"gateway_{_made}"

    async def make() -> None:
        connection = await asyncpg.connect(server.url("postgres").replace("+asyncpg", ""))
        await connection.execute(f"CREATE DATABASE {name}")
        await connection.close()

    asyncio.run(make())
    return server.url(name)
