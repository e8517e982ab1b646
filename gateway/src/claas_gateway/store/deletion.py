"""Deletion: by end user, and by age. What accounting needs stays, without texts."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import delete, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from claas_gateway.records import ItemState
from claas_gateway.store.database.transactions import Database
from claas_gateway.store.feedback import NOT_FINAL
from claas_gateway.store.interface import Forgotten
from claas_gateway.store.schema.statements import some_of, within
from claas_gateway.store.schema.tables import items, rollouts

ROLLOUT_DELETED = "RolloutDeleted"
"""Why an item was refused whose texts were deleted before a batch had it."""
_AT_ONCE = 500
"""Rows that a transaction deletes: the next writer waits for it."""
_WITHOUT_TEXTS = {
    "feedback": "",
    "correction": "",
    "tags": (),
    "answer_after": None,
    "rollout_id": None,
    "erased": True,
}
_WITHOUT_PEOPLE = {"author": None, "user": None}


async def forget_user(database: Database, namespace: str | None, adapter: str | None, user: str) -> Forgotten:
    """Delete rollouts and feedback of an end user: feedback on answers to them, and what they wrote themselves."""
    their_rollouts = (rollouts.c.user == user, *within(rollouts, namespace, adapter))
    their_items = (
        or_(
            items.c.user == user,
            items.c.author == user,
            items.c.rollout_id.in_(select(rollouts.c.id).where(*their_rollouts)),
        ),
        *within(items, namespace, adapter),
    )

    attempt: Forgotten | None = None

    async def work(connection: AsyncConnection) -> Forgotten:
        nonlocal attempt
        found = (
            await connection.execute(
                select(
                    items.c.id, items.c.state, items.c.namespace, items.c.adapter, items.c.version, items.c.batch_id
                )
                .where(*their_items)
                .order_by(items.c.id)
                .with_for_update()
            )
        ).all()
        await connection.execute(
            update(items)
            .where(items.c.state == ItemState.STORED, *their_items)
            .values(
                state=ItemState.REFUSED,
                reason=ROLLOUT_DELETED,
                message="The answer that it is about was deleted before it was trained on",
            )
        )
        await connection.execute(update(items).where(*their_items).values(**_WITHOUT_TEXTS, **_WITHOUT_PEOPLE))
        deleted = await connection.execute(delete(rollouts).where(*their_rollouts))
        learned = {
            (row.namespace, row.adapter, row.version)
            for row in found
            if row.state is ItemState.IN_VERSION and row.version is not None
        }
        learning = {
            (row.namespace, row.adapter, row.batch_id)
            for row in found
            if row.state in (ItemState.BATCHED, ItemState.IN_JOB)
        }
        if attempt is not None and not found and not deleted.rowcount:
            return attempt  # It was committed before its connection was lost.
        attempt = Forgotten(deleted.rowcount, len(found), tuple(sorted(learned)), tuple(sorted(learning)))
        return attempt

    forgotten = await database.write(work)
    await database.purge()
    return forgotten


async def expire(database: Database, before: datetime) -> int:
    """Delete rollouts that no open item needs, and texts of final items, from before that time; how many rows."""
    needed = select(items.c.rollout_id).where(NOT_FINAL, items.c.rollout_id.is_not(None))
    old_rollouts = select(rollouts.c.id).where(rollouts.c.created < before, rollouts.c.id.not_in(needed))
    old_items = select(items.c.id).where(items.c.created < before, ~NOT_FINAL, items.c.erased.is_(False))

    async def some(connection: AsyncConnection) -> int:
        deleted = await connection.execute(delete(rollouts).where(some_of(rollouts.c.id, old_rollouts, _AT_ONCE)))
        erased = await connection.execute(
            update(items).where(some_of(items.c.id, old_items, _AT_ONCE)).values(**_WITHOUT_TEXTS)
        )
        return int(deleted.rowcount + erased.rowcount)

    total = 0
    while count := await database.write(some):
        total += count
    if total:
        await database.purge()
    return total
