"""PostgreSQL: as many replicas as are wanted."""

from __future__ import annotations

from sqlalchemy import URL
from sqlalchemy.ext.asyncio import create_async_engine

from claas_gateway.store.database.transactions import Database

_CONNECTIONS = 8
_WAIT_SECONDS = 10.0
_COMMAND_SECONDS = 60.0


def open_database(url: URL) -> Database:
    """One pool for all; the server's `synchronous_commit` says what a commit is worth."""
    engine = create_async_engine(
        url,
        pool_size=_CONNECTIONS,
        max_overflow=_CONNECTIONS,
        pool_timeout=_WAIT_SECONDS,
        pool_recycle=1800,
        # A server that does not answer is one that is gone.
        connect_args={"timeout": _WAIT_SECONDS, "command_timeout": _COMMAND_SECONDS},
        hide_parameters=True,
    )
    return Database(engine, engine)
