"""The tables. A column is called as the record's field is; a change here needs a migration."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Float, ForeignKey, Index, Integer, MetaData, Table, UniqueConstraint, text

from claas_gateway.records import BatchState, Evidence, ItemState, RequestMode, RolloutKind
from claas_gateway.store.schema.columns import Closed, Json, Moment, Name, PackedIds, PackedLogprobs, Private, Texts

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _by_person(column: str) -> Index:
    """An index of people. By hash, since a text of any length must fit, and a B-tree of PostgreSQL holds 2.7 kB."""
    known = text(f'"{column}" IS NOT NULL')
    return Index(None, column, postgresql_using="hash", postgresql_where=known, sqlite_where=known)


rollouts = Table(
    "rollouts",
    metadata,
    Column("id", Name, primary_key=True),
    Column("namespace", Name, nullable=False),
    Column("adapter", Name),
    Column("request_id", Name, nullable=False),
    Column("choice", Integer, nullable=False),
    Column("kind", Closed(RolloutKind), nullable=False),
    Column("created", Moment, nullable=False),
    Column("version", Integer),
    Column("user", Private),
    Column("request", Json, nullable=False),
    Column("system_prompt", Private, nullable=False),
    Column("user_prompt", Private, nullable=False),
    Column("answer", Private, nullable=False),
    Column("answer_hash", Name, nullable=False),
    Column("prompt_hash", Name, nullable=False),
    Column("evidence", Closed(Evidence), nullable=False),
    Column("prompt_token_ids", PackedIds, nullable=False),
    Column("response_token_ids", PackedIds, nullable=False),
    Column("response_logprobs", PackedLogprobs, nullable=False),
    Column("sampling", Json, nullable=False),
    Column("finish_reason", Name),
    Column("incomplete", Name),
    # The hash comes first: with keys off feedback is looked up in all namespaces.
    Index(None, "answer_hash", "namespace", "adapter", "created"),
    Index(None, "created"),
    _by_person("user"),
)

requests = Table(
    "feedback_requests",
    metadata,
    Column("id", Name, primary_key=True),
    Column("namespace", Name, nullable=False),
    Column("adapter", Name, nullable=False),
    Column("lora_id", Name, nullable=False),
    Column("mode", Closed(RequestMode), nullable=False),
    Column("created", Moment, nullable=False),
    Column("body_hash", Name, nullable=False),
    Column("key_name", Name, nullable=False),
    Column("idempotency_key", Name),
    UniqueConstraint("namespace", "key_name", "idempotency_key"),
)

_OPEN_BATCH = text("state <> 'accounted'")

batches = Table(
    "feedback_batches",
    metadata,
    Column("id", Name, primary_key=True),
    Column("namespace", Name, nullable=False),
    Column("adapter", Name, nullable=False),
    Column("adapter_uid", Name, nullable=False),
    Column("created", Moment, nullable=False),
    Column("state", Closed(BatchState), nullable=False),
    Column("training", Json, nullable=False),
    Column("job_uid", Name),
    Column("phase", Name),
    Column("submitted", Moment),
    Column("accounted", Moment),
    Column("version", Integer),
    Column("reason", Name),
    Column("message", Name),
    Column("metrics", Json, nullable=False),
    Column("timings", Json, nullable=False),
    Column("handover", Name),
    Column("weights", Name),
    Column("served", Boolean),
    Index(None, "namespace", "adapter", "created"),
    Index("ix_feedback_batches_open", "created", postgresql_where=_OPEN_BATCH, sqlite_where=_OPEN_BATCH),
)

_WAITING = text("state = 'stored'")

items = Table(
    "feedback_items",
    metadata,
    Column("id", Name, primary_key=True),
    Column("request_id", Name, ForeignKey(requests.c.id), nullable=False),
    Column("position", Integer, nullable=False),
    Column("namespace", Name, nullable=False),
    Column("adapter", Name, nullable=False),
    Column("created", Moment, nullable=False),
    Column("feedback", Private, nullable=False),
    Column("state", Closed(ItemState), nullable=False),
    Column("rollout_id", Name),
    Column("correction", Private, nullable=False),
    Column("rating", Float),
    Column("tags", Texts, nullable=False),
    Column("author", Private),
    Column("user", Private),
    Column("training", Json, nullable=False),
    Column("batch_id", Name, ForeignKey(batches.c.id)),
    Column("version", Integer),
    Column("reason", Name),
    Column("message", Name),
    Column("answer_after", Private),
    Column("erased", Boolean, nullable=False),
    # Its place among the samples of its batch; not part of the record.
    Column("batch_position", Integer, nullable=False),
    Index(None, "request_id", "position"),
    Index(None, "batch_id", "batch_position"),
    Index(None, "namespace", "adapter", "version"),
    Index(None, "namespace", "adapter", "state"),
    Index(None, "namespace", "adapter", "created"),
    Index(None, "created"),
    _by_person("user"),
    _by_person("author"),
    Index(None, "rollout_id"),
    Index(
        "ix_feedback_items_waiting",
        "namespace",
        "adapter",
        "created",
        postgresql_where=_WAITING,
        sqlite_where=_WAITING,
    ),
)

versions = Table(
    "versions",
    metadata,
    Column("namespace", Name, primary_key=True),
    Column("adapter", Name, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("digest", Name, nullable=False),
    Column("created", Moment, nullable=False),
    Column("parent", Integer),
    Column("job", Name),
    Column("job_uid", Name),
    Column("metrics", Json, nullable=False),
    Column("verdict", Name, nullable=False),
    Column("serving_gap_seconds", Float),
    Column("weights", Name),
)

service_changes = Table(
    "service_changes",
    metadata,
    Column("namespace", Name, primary_key=True),
    Column("adapter", Name, primary_key=True),
    # Counts an adapter's changes from 1, so that of two replicas that saw the same change one writes it.
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("at", Moment, nullable=False),
    Column("version", Integer, nullable=False),
    Column("previous", Integer),
)

scores = Table(
    "probe_scores",
    metadata,
    Column("namespace", Name, primary_key=True),
    Column("adapter", Name, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("name", Name, primary_key=True),
    Column("value", Float, nullable=False),
    Column("at", Moment, nullable=False),
)
