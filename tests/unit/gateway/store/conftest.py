"""A store on either database: SQLite in the fast tier, PostgreSQL among the contract tests."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from claas_gateway.store.interface import Store
from claas_gateway.store.sql_store import open_store
from tests.databases.postgresql import PostgresqlServer, running_postgresql

BOTH = ("sqlite", pytest.param("postgresql", marks=pytest.mark.contract))


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresqlServer]:
    with running_postgresql() as server:
        yield server


@pytest.fixture(scope="session")
def sqlite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database with its tables: making them takes longer than most tests."""
    path = tmp_path_factory.mktemp("database") / "gateway.db"
    make_tables(f"sqlite+aiosqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgresql_database(postgresql: PostgresqlServer) -> str:
    """The same in PostgreSQL."""
    name = postgresql.create_database()
    make_tables(postgresql.url(name))
    return name


@pytest.fixture(params=BOTH)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database with its tables."""
    if request.param == "sqlite":
        path = shutil.copy(request.getfixturevalue("sqlite_file"), tmp_path)
        return f"sqlite+aiosqlite:///{path}"
    server = request.getfixturevalue("postgresql")
    return str(server.url(server.create_database(like=request.getfixturevalue("postgresql_database"))))


@pytest.fixture(params=BOTH)
def new_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without tables."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/gateway.db"
    server = request.getfixturevalue("postgresql")
    return str(server.url(server.create_database()))


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    async with open_store(database_url) as opened:
        yield opened


def make_tables(url: str) -> None:
    async def make() -> None:
        async with open_store(url):
            pass

    asyncio.run(make())
