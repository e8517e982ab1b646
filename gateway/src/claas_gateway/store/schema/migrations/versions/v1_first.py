"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "first"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make all tables."""
    op.create_table(
        "feedback_batches",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("adapter", sa.Text(), nullable=False),
        sa.Column("adapter_uid", sa.Text(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("training", sa.LargeBinary(), nullable=False),
        sa.Column("job_uid", sa.Text(), nullable=True),
        sa.Column("phase", sa.Text(), nullable=True),
        sa.Column("submitted", sa.BigInteger(), nullable=True),
        sa.Column("accounted", sa.BigInteger(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("metrics", sa.LargeBinary(), nullable=False),
        sa.Column("timings", sa.LargeBinary(), nullable=False),
        sa.Column("handover", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_feedback_batches")),
    )
    op.create_index(
        op.f("ix_feedback_batches_namespace_adapter_created"),
        "feedback_batches",
        ["namespace", "adapter", "created"],
        unique=False,
    )
    op.create_index(
        "ix_feedback_batches_open",
        "feedback_batches",
        ["created"],
        unique=False,
        postgresql_where=sa.text("state <> 'accounted'"),
        sqlite_where=sa.text("state <> 'accounted'"),
    )
    op.create_table(
        "feedback_requests",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("adapter", sa.Text(), nullable=False),
        sa.Column("lora_id", sa.Text(), nullable=False),
        sa.Column("mode", sa.Text(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("body_hash", sa.Text(), nullable=False),
        sa.Column("key_name", sa.Text(), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_feedback_requests")),
        sa.UniqueConstraint(
            "namespace",
            "key_name",
            "idempotency_key",
            name=op.f("uq_feedback_requests_namespace_key_name_idempotency_key"),
        ),
    )
    op.create_table(
        "probe_scores",
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("adapter", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Float(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "adapter", "version", "name", name=op.f("pk_probe_scores")),
    )
    op.create_table(
        "rollouts",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("adapter", sa.Text(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("choice", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("user", sa.LargeBinary(), nullable=True),
        sa.Column("request", sa.LargeBinary(), nullable=False),
        sa.Column("system_prompt", sa.LargeBinary(), nullable=False),
        sa.Column("user_prompt", sa.LargeBinary(), nullable=False),
        sa.Column("answer", sa.LargeBinary(), nullable=False),
        sa.Column("answer_hash", sa.Text(), nullable=False),
        sa.Column("prompt_hash", sa.Text(), nullable=False),
        sa.Column("evidence", sa.Text(), nullable=False),
        sa.Column("prompt_token_ids", sa.LargeBinary(), nullable=False),
        sa.Column("response_token_ids", sa.LargeBinary(), nullable=False),
        sa.Column("response_logprobs", sa.LargeBinary(), nullable=False),
        sa.Column("sampling", sa.LargeBinary(), nullable=False),
        sa.Column("finish_reason", sa.Text(), nullable=True),
        sa.Column("incomplete", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rollouts")),
    )
    op.create_index(
        op.f("ix_rollouts_answer_hash_namespace_adapter_created"),
        "rollouts",
        ["answer_hash", "namespace", "adapter", "created"],
        unique=False,
    )
    op.create_index(op.f("ix_rollouts_created"), "rollouts", ["created"], unique=False)
    op.create_index(
        op.f("ix_rollouts_user"),
        "rollouts",
        ["user"],
        unique=False,
        postgresql_using="hash",
        postgresql_where=sa.text('"user" IS NOT NULL'),
        sqlite_where=sa.text('"user" IS NOT NULL'),
    )
    op.create_table(
        "service_changes",
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("adapter", sa.Text(), nullable=False),
        sa.Column("sequence", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("previous", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("namespace", "adapter", "sequence", name=op.f("pk_service_changes")),
    )
    op.create_table(
        "versions",
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("adapter", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("parent", sa.Integer(), nullable=True),
        sa.Column("job", sa.Text(), nullable=True),
        sa.Column("job_uid", sa.Text(), nullable=True),
        sa.Column("metrics", sa.LargeBinary(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("serving_gap_seconds", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("namespace", "adapter", "number", name=op.f("pk_versions")),
    )
    op.create_table(
        "feedback_items",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("adapter", sa.Text(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("feedback", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("rollout_id", sa.Text(), nullable=True),
        sa.Column("correction", sa.LargeBinary(), nullable=False),
        sa.Column("rating", sa.Float(), nullable=True),
        sa.Column("tags", sa.LargeBinary(), nullable=False),
        sa.Column("author", sa.LargeBinary(), nullable=True),
        sa.Column("user", sa.LargeBinary(), nullable=True),
        sa.Column("training", sa.LargeBinary(), nullable=False),
        sa.Column("batch_id", sa.Text(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("answer_after", sa.LargeBinary(), nullable=True),
        sa.Column("erased", sa.Boolean(), nullable=False),
        sa.Column("batch_position", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["batch_id"], ["feedback_batches.id"], name=op.f("fk_feedback_items_batch_id")),
        sa.ForeignKeyConstraint(["request_id"], ["feedback_requests.id"], name=op.f("fk_feedback_items_request_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_feedback_items")),
    )
    op.create_index(
        op.f("ix_feedback_items_author"),
        "feedback_items",
        ["author"],
        unique=False,
        postgresql_using="hash",
        postgresql_where=sa.text('"author" IS NOT NULL'),
        sqlite_where=sa.text('"author" IS NOT NULL'),
    )
    op.create_index(
        op.f("ix_feedback_items_batch_id_batch_position"),
        "feedback_items",
        ["batch_id", "batch_position"],
        unique=False,
    )
    op.create_index(op.f("ix_feedback_items_created"), "feedback_items", ["created"], unique=False)
    op.create_index(
        op.f("ix_feedback_items_namespace_adapter_created"),
        "feedback_items",
        ["namespace", "adapter", "created"],
        unique=False,
    )
    op.create_index(
        op.f("ix_feedback_items_namespace_adapter_state"),
        "feedback_items",
        ["namespace", "adapter", "state"],
        unique=False,
    )
    op.create_index(
        op.f("ix_feedback_items_namespace_adapter_version"),
        "feedback_items",
        ["namespace", "adapter", "version"],
        unique=False,
    )
    op.create_index(
        op.f("ix_feedback_items_request_id_position"), "feedback_items", ["request_id", "position"], unique=False
    )
    op.create_index(op.f("ix_feedback_items_rollout_id"), "feedback_items", ["rollout_id"], unique=False)
    op.create_index(
        op.f("ix_feedback_items_user"),
        "feedback_items",
        ["user"],
        unique=False,
        postgresql_using="hash",
        postgresql_where=sa.text('"user" IS NOT NULL'),
        sqlite_where=sa.text('"user" IS NOT NULL'),
    )
    op.create_index(
        "ix_feedback_items_waiting",
        "feedback_items",
        ["namespace", "adapter", "created"],
        unique=False,
        postgresql_where=sa.text("state = 'stored'"),
        sqlite_where=sa.text("state = 'stored'"),
    )
