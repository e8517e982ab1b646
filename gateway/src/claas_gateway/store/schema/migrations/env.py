"""Alembic runs this file for each command."""

from __future__ import annotations

from alembic import context

from claas_gateway.store.schema.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
