"""Brings the schema of the database up to date, at the start."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection

from claas_gateway.errors import SettingsError

_LOCK = 0x636C616173
"""Number of the advisory lock that two replicas take in turn."""


async def upgrade(connection: AsyncConnection) -> None:
    """Run the steps that the database lacks, in the connection's transaction. Raises SettingsError for a database of
    a newer gateway."""
    if connection.dialect.name == "postgresql":
        await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    await connection.run_sync(_upgrade)


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise SettingsError(
            f"the database's schema can't be brought up to date, a newer gateway may have made it: {error}"
        ) from None
