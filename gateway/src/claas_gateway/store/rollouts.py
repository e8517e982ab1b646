"""Rollouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from claas_gateway.records import Rollout
from claas_gateway.store.database.group_commit import GroupCommit
from claas_gateway.store.database.transactions import Database
from claas_gateway.store.schema.rows import Rows, values_of
from claas_gateway.store.schema.statements import insert_unless_there, within
from claas_gateway.store.schema.tables import rollouts

_ROLLOUTS = Rows(rollouts, Rollout)


class SqlRollouts:
    """The table of rollouts."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._insert = insert_unless_there(database, rollouts)
        self._group: GroupCommit[Rollout] = GroupCommit(self._store)

    async def add(self, added: Sequence[Rollout]) -> None:
        """Store the answers to one request. Concurrent calls share a commit."""
        if added:
            await self._group.add(added)

    async def get(self, rollout_id: str) -> Rollout | None:
        """One rollout."""
        statement = _ROLLOUTS.select().where(rollouts.c.id == rollout_id)
        return await self._database.read(lambda connection: _ROLLOUTS.one(connection, statement))

    async def find(
        self, namespace: str | None, adapter: str | None, answer_hash: str, prompt_hash: str | None
    ) -> Rollout | None:
        """The rollout that feedback is about: of those with that answer the newest one with that prompt, else the
        newest one."""
        newest = (
            _ROLLOUTS.select()
            .where(rollouts.c.answer_hash == answer_hash, *within(rollouts, namespace, adapter))
            .order_by(rollouts.c.created.desc(), rollouts.c.id.desc())
            .limit(1)
        )

        async def work(connection: AsyncConnection) -> Rollout | None:
            if prompt_hash is not None:
                same_prompt = newest.where(rollouts.c.prompt_hash == prompt_hash)
                if (found := await _ROLLOUTS.one(connection, same_prompt)) is not None:
                    return found
            return await _ROLLOUTS.one(connection, newest)

        return await self._database.read(work)

    async def prompts(self, rollout_ids: Sequence[str]) -> Mapping[str, str]:
        """The user prompts of those that are still there, by rollout."""
        statement = select(rollouts.c.id, rollouts.c.user_prompt).where(rollouts.c.id.in_(rollout_ids))

        async def work(connection: AsyncConnection) -> Mapping[str, str]:
            return {row.id: row.user_prompt for row in (await connection.execute(statement)).all()}

        return await self._database.read(work) if rollout_ids else {}

    async def close(self) -> None:
        """Wait until all is stored."""
        await self._group.close()

    async def _store(self, added: Sequence[Rollout]) -> None:
        rows = [values_of(rollout) for rollout in added]

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(self._insert, rows)

        await self._database.append(rollouts, rows, work)
