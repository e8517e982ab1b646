"""A store opens on a new database and on its own, with SQLite for one process at a time; else it says why not."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine

from claas_gateway.errors import SettingsError
from claas_gateway.store.schema.tables import metadata
from claas_gateway.store.sql_store import open_store
from tests.builders.gateway_records import build_batch, build_item, build_request, build_rollout


async def test_the_migrations_make_the_tables_that_the_code_knows(new_database_url: str) -> None:
    async with open_store(new_database_url):
        pass
    engine = create_async_engine(new_database_url)

    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []
    await engine.dispose()


async def test_what_was_stored_is_there_after_a_restart(database_url: str) -> None:
    async with open_store(database_url) as store:
        await store.rollouts.add([build_rollout("one")])
        assert await store.healthy() is None
    async with open_store(database_url) as store:
        assert await store.rollouts.get("one") == build_rollout("one")


async def test_what_a_gateway_of_the_first_schema_stored_is_there_after_an_update(database_url: str) -> None:
    batch = build_batch("batch")
    async with open_store(database_url) as store:
        await store.feedback.accept(build_request("request"), [build_item("item")])
        assert await store.batches.form(batch, ["item"])
    engine = create_async_engine(database_url)
    async with engine.begin() as connection:
        for table, column in (
            ("feedback_batches", "weights"),
            ("feedback_batches", "served"),
            ("versions", "weights"),
        ):
            await connection.execute(text(f"ALTER TABLE {table} DROP COLUMN {column}"))
        await connection.execute(text("UPDATE alembic_version SET version_num = 'first'"))
    await engine.dispose()
    async with open_store(database_url) as store:
        assert await store.batches.get("batch") == batch


async def test_a_database_of_a_newer_gateway_is_left_alone(database_url: str) -> None:
    engine = create_async_engine(database_url)
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = 'later'"))
    await engine.dispose()
    with pytest.raises(SettingsError, match="newer gateway"):
        async with open_store(database_url):
            pass


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("no url", "CLAAS_GATEWAY_DATABASE_URL is not a URL"),
        ("sqlite+aiosqlite://", "names no file"),
        ("sqlite+aiosqlite:///:memory:", "names no file"),
        ("sqlite+aiosqlite:////nowhere/at/all/gateway.db", "can't be opened: No such file or directory"),
        ("sqlite:////tmp/gateway.db", "must begin with sqlite"),
        ("postgresql://host/gateway", "must begin with sqlite"),
        ("mysql://host/gateway", "must begin with sqlite"),
    ],
)
async def test_a_url_that_names_no_usable_database_is_refused(url: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        async with open_store(url):
            pass


async def test_the_file_of_a_store_is_not_opened_a_second_time(sqlite_file: Path, tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{shutil.copy(sqlite_file, tmp_path)}"
    async with open_store(url):
        with pytest.raises(SettingsError, match="another process uses the database file"):
            async with open_store(url):
                pass
    async with open_store(url) as store:
        assert await store.healthy() is None


async def test_the_files_of_sqlite_are_for_the_gateway_alone(tmp_path: Path) -> None:
    def modes() -> dict[str, str]:
        return {each.name: stat.filemode(each.stat().st_mode) for each in tmp_path.iterdir()}

    async with open_store(f"sqlite+aiosqlite:///{tmp_path}/gateway.db") as store:
        await store.rollouts.add([build_rollout("one")])
        assert modes() == dict.fromkeys(
            ("gateway.db", "gateway.db-wal", "gateway.db-shm", "gateway.db.lock"), "-rw-------"
        )
