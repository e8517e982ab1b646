"""The store on a database that SQLAlchemy reaches."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import datetime

from sqlalchemy import make_url, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from claas_gateway.errors import NotNow, SettingsError
from claas_gateway.store import deletion
from claas_gateway.store.batches import SqlBatches
from claas_gateway.store.database import postgresql, sqlite
from claas_gateway.store.database.transactions import Database, describe
from claas_gateway.store.feedback import SqlFeedback
from claas_gateway.store.history import SqlHistory
from claas_gateway.store.interface import Forgotten, Store
from claas_gateway.store.rollouts import SqlRollouts
from claas_gateway.store.schema import migrate

_HEALTH_SECONDS = 2.0


@contextlib.asynccontextmanager
async def open_store(url: str) -> AsyncIterator[Store]:
    """Open the database and bring its schema up to date. Raises SettingsError."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise SettingsError("CLAAS_GATEWAY_DATABASE_URL is not a URL") from None
    with contextlib.ExitStack() as claims:
        if parsed.drivername == "sqlite+aiosqlite":
            database = sqlite.open_database(parsed, claims.enter_context(sqlite.claimed_file(parsed)))
        elif parsed.drivername == "postgresql+asyncpg":
            database = postgresql.open_database(parsed)
        else:
            raise SettingsError(
                "CLAAS_GATEWAY_DATABASE_URL must begin with sqlite+aiosqlite:/// or postgresql+asyncpg://"
            )
        store = SqlStore(database)
        try:
            await database.write(migrate.upgrade)
            yield store
        finally:
            await store.close()


class SqlStore:
    """The store: a group of methods for each group of tables."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.rollouts = SqlRollouts(database)
        self.feedback = SqlFeedback(database)
        self.batches = SqlBatches(database)
        self.history = SqlHistory(database)

    async def forget_user(self, namespace: str | None, adapter: str | None, user: str) -> Forgotten:
        """Delete rollouts and feedback of an end user, within what the caller may see."""
        return await deletion.forget_user(self._database, namespace, adapter, user)

    async def expire(self, before: datetime) -> int:
        """Delete rollouts that no open item needs, and texts of final items, from before that time; how many rows."""
        return await deletion.expire(self._database, before)

    async def healthy(self) -> str | None:
        """None, or what is wrong with the database."""

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(text("SELECT 1"))

        try:
            async with asyncio.timeout(_HEALTH_SECONDS):
                await self._database.read(work)
        except TimeoutError:
            return f"the database did not answer in {_HEALTH_SECONDS:.0f} s"
        except NotNow as error:
            return error.detail
        except SQLAlchemyError as error:
            return f"the database failed: {describe(error)}"
        return None

    async def close(self) -> None:
        """Wait for what is being written, and close the connections."""
        await self.rollouts.close()
        await self._database.close()
