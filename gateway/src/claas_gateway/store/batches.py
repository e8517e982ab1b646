"""Batches: formed, submitted, accounted for; each once, whatever the number of replicas."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Select, bindparam, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from claas_gateway.records import BatchState, FeedbackBatch, ItemOutcome, ItemState
from claas_gateway.store.database.transactions import Database
from claas_gateway.store.feedback import NOT_FINAL
from claas_gateway.store.schema.rows import Rows, values_of
from claas_gateway.store.schema.statements import first_of_each_adapter, within
from claas_gateway.store.schema.tables import batches, items

_BATCHES = Rows(batches, FeedbackBatch)
_NEWEST_FIRST = (batches.c.created.desc(), batches.c.id.desc())
_JOIN = (
    update(items)
    .where(items.c.id == bindparam("item"))
    .values(state=ItemState.BATCHED, batch_id=bindparam("batch"), batch_position=bindparam("place"))
)


_END = (
    "job_uid",
    "phase",
    "submitted",
    "accounted",
    "version",
    "reason",
    "message",
    "metrics",
    "timings",
    "handover",
    "weights",
    "served",
)
"""What is written down of a batch when it is accounted for."""


class SqlBatches:
    """The table of batches, and what their items go through with them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def form(self, batch: FeedbackBatch, item_ids: Sequence[str]) -> bool:
        """Commit a batch with its members, in that order. False, and nothing is written, if one of them does not wait
        any more."""

        async def work(connection: AsyncConnection) -> bool:
            # Locked in one order, so that two replicas don't wait for each other.
            members = select(items.c.id, items.c.state, items.c.batch_id).where(items.c.id.in_(item_ids))
            found = (await connection.execute(members.order_by(items.c.id).with_for_update())).all()
            if len(found) == len(item_ids) and all(row.batch_id == batch.id for row in found):
                return True  # This very call committed it before its connection was lost.
            if len(found) != len(item_ids) or any(row.state is not ItemState.STORED for row in found):
                return False
            await connection.execute(insert(batches), values_of(batch))
            await _join(connection, batch.id, item_ids)
            return True

        if not item_ids or len(set(item_ids)) != len(item_ids):
            raise ValueError("a batch has members, and each once")
        return await self._database.write(work)

    async def get(self, batch_id: str) -> FeedbackBatch | None:
        """One batch."""
        statement = _BATCHES.select().where(batches.c.id == batch_id)
        return await self._database.read(lambda connection: _BATCHES.one(connection, statement))

    async def unaccounted(self, namespace: str | None = None, adapter: str | None = None) -> Sequence[FeedbackBatch]:
        """Batches that are not accounted for, oldest first; of one adapter, or of all."""
        return await self._batches(
            _BATCHES.select()
            .where(batches.c.state != BatchState.ACCOUNTED, *within(batches, namespace, adapter))
            .order_by(batches.c.created, batches.c.id)
        )

    async def submitted(self, batch_id: str, job_uid: str, at: datetime) -> None:
        """Its job exists: its members are in a job. Nothing happens to a batch that is accounted for."""

        async def work(connection: AsyncConnection) -> None:
            written = await connection.execute(
                update(batches)
                .where(batches.c.id == batch_id, batches.c.state != BatchState.ACCOUNTED)
                .values(state=BatchState.SUBMITTED, job_uid=job_uid, submitted=at)
            )
            if written.rowcount:
                await connection.execute(
                    update(items)
                    .where(items.c.batch_id == batch_id, items.c.state == ItemState.BATCHED)
                    .values(state=ItemState.IN_JOB)
                )

        await self._database.write(work)

    async def progressed(self, batch_id: str, phase: str) -> None:
        """The phase of its job."""

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(
                update(batches)
                .where(batches.c.id == batch_id, batches.c.state != BatchState.ACCOUNTED)
                .values(phase=phase)
            )

        await self._database.write(work)

    async def account(
        self, batch: FeedbackBatch, outcomes: Sequence[ItemOutcome], rest: FeedbackBatch | None = None
    ) -> bool:
        """Write down how its job ended and what became of each member, in one transaction. Raises ValueError for
        members that get neither an outcome nor a place in `rest`."""
        end = {
            name: value
            for name in _END
            if (value := getattr(batch, name)) is not None  # Not seen now is not unseen.
        }
        tried = False

        async def work(connection: AsyncConnection) -> bool:
            nonlocal tried
            again, tried = tried, True
            open_batch = (batches.c.id == batch.id, batches.c.state != BatchState.ACCOUNTED)
            written = await connection.execute(
                update(batches).where(*open_batch).values(state=BatchState.ACCOUNTED, **end)
            )
            if not written.rowcount:
                # After a lost connection: this very call may have committed it.
                written_by = select(batches.c.accounted).where(batches.c.id == batch.id)
                return again and await connection.scalar(written_by) == batch.accounted
            await _end_items(connection, batch.id, outcomes)
            left = select(items.c.id).where(items.c.batch_id == batch.id, NOT_FINAL).order_by(items.c.batch_position)
            remaining = list((await connection.scalars(left)).all())
            if rest is None and remaining:
                raise ValueError(f"batch {batch.id} ends without an outcome for {len(remaining)} of its items")
            if rest is not None and remaining:
                await connection.execute(insert(batches), values_of(rest))
                await _join(connection, rest.id, remaining)
            return True

        return await self._database.write(work)

    async def recent(self, namespace: str | None, adapter: str | None, limit: int) -> Sequence[FeedbackBatch]:
        """Batches, newest first."""
        return await self._batches(
            _BATCHES.select().where(*within(batches, namespace, adapter)).order_by(*_NEWEST_FIRST).limit(limit)
        )

    async def newest(self) -> Sequence[FeedbackBatch]:
        """The newest batch of each adapter."""
        return await self._batches(first_of_each_adapter(batches, _BATCHES.columns, _NEWEST_FIRST))

    async def _batches(self, statement: Select[Any]) -> Sequence[FeedbackBatch]:
        return await self._database.read(lambda connection: _BATCHES.all(connection, statement))


async def _join(connection: AsyncConnection, batch_id: str, item_ids: Sequence[str]) -> None:
    await connection.execute(
        _JOIN, [{"item": item, "batch": batch_id, "place": place} for place, item in enumerate(item_ids)]
    )


async def _end_items(connection: AsyncConnection, batch_id: str, outcomes: Sequence[ItemOutcome]) -> None:
    if not outcomes:
        return
    statement = (
        update(items)
        .where(items.c.id == bindparam("item"), items.c.batch_id == batch_id, NOT_FINAL)
        .values(
            state=bindparam("ended"),
            version=bindparam("learned"),
            reason=bindparam("why"),
            message=bindparam("words"),
        )
    )
    await connection.execute(
        statement,
        [
            {
                "item": outcome.item_id,
                "ended": outcome.state,
                "learned": outcome.version,
                "why": outcome.reason,
                "words": outcome.message,
            }
            for outcome in outcomes
        ],
    )
