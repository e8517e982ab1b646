"""Weights that an engine's service keeps, and whether a batch's version came into service."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "weights"
down_revision = "first"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns, which older replicas do not read."""
    op.add_column("feedback_batches", sa.Column("weights", sa.Text(), nullable=True))
    op.add_column("feedback_batches", sa.Column("served", sa.Boolean(), nullable=True))
    op.add_column("versions", sa.Column("weights", sa.Text(), nullable=True))
