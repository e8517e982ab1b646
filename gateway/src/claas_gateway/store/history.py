"""Versions, what was served when, and scores of versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from claas_gateway.records import ProbeScore, ServiceChange, VersionSeen
from claas_gateway.store.database.transactions import Database
from claas_gateway.store.interface import AdapterHistory
from claas_gateway.store.schema.rows import Rows, values_of
from claas_gateway.store.schema.statements import first_of_each_adapter, insert_or_change, insert_unless_there, within
from claas_gateway.store.schema.tables import scores, service_changes, versions

_VERSIONS = Rows(versions, VersionSeen)
_CHANGES = Rows(service_changes, ServiceChange)
_SCORES = Rows(scores, ProbeScore)


class SqlHistory:
    """The tables of versions, of changes of the served version, and of scores."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def saw_versions(self, seen: Sequence[VersionSeen]) -> None:
        """Write down versions, or what has changed of them; a serving gap that is None leaves the one that is
        known."""
        ordered = sorted(seen, key=lambda version: (version.namespace, version.adapter, version.number))
        statement = insert_or_change(self._database, versions, keep=("serving_gap_seconds",))

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(statement, [values_of(version) for version in ordered])

        if ordered:
            await self._database.write(work)

    async def saw_served(self, change: ServiceChange) -> None:
        """Write down that another version is served, unless the last one written down is that one, or is newer than
        what was seen."""
        last = (
            select(service_changes.c.sequence, service_changes.c.at, service_changes.c.version)
            .where(*within(service_changes, change.namespace, change.adapter))
            .order_by(service_changes.c.sequence.desc())
            .limit(1)
        )
        statement = insert_unless_there(self._database, service_changes)

        async def work(connection: AsyncConnection) -> bool:
            known = (await connection.execute(last)).one_or_none()
            if known is not None and (known.version == change.version or known.at > change.at):
                return True
            number = 1 if known is None else known.sequence + 1
            written = await connection.execute(statement, {**values_of(change), "sequence": number})
            return bool(written.rowcount)

        # Another replica that wrote the same number wrote first: look again.
        while not await self._database.write(work):
            pass

    async def add_score(self, score: ProbeScore) -> None:
        """Write down a score; an earlier one of that name for that version is replaced."""
        statement = insert_or_change(self._database, scores)

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(statement, values_of(score))

        await self._database.write(work)

    async def versions(self, namespace: str, adapter: str) -> Sequence[VersionSeen]:
        """All versions of an adapter, by number."""
        statement = _VERSIONS.select().where(*within(versions, namespace, adapter)).order_by(versions.c.number)
        return await self._database.read(lambda connection: _VERSIONS.all(connection, statement))

    async def made_by(self, namespace: str, adapter: str, job: str) -> VersionSeen | None:
        """The version that a DistillJob of that name made."""
        statement = (
            _VERSIONS.select()
            .where(versions.c.job == job, *within(versions, namespace, adapter))
            .order_by(versions.c.number.desc())
            .limit(1)
        )
        return await self._database.read(lambda connection: _VERSIONS.one(connection, statement))

    async def changes(self, namespace: str, adapter: str) -> Sequence[ServiceChange]:
        """Changes of the served version, oldest first."""
        statement = (
            _CHANGES.select().where(*within(service_changes, namespace, adapter)).order_by(service_changes.c.sequence)
        )
        return await self._database.read(lambda connection: _CHANGES.all(connection, statement))

    async def scores(self, namespace: str, adapter: str) -> Mapping[str, Sequence[ProbeScore]]:
        """Scores by name, by version."""
        statement = (
            _SCORES.select().where(*within(scores, namespace, adapter)).order_by(scores.c.name, scores.c.version)
        )

        found: dict[str, list[ProbeScore]] = {}
        for score in await self._database.read(lambda connection: _SCORES.all(connection, statement)):
            found.setdefault(score.name, []).append(score)
        return found

    async def adapters(self) -> Sequence[AdapterHistory]:
        """All adapters of which a version or a change of service is known, those that are gone too."""
        newest = first_of_each_adapter(versions, _VERSIONS.columns, (versions.c.number.desc(),))
        last = first_of_each_adapter(service_changes, _CHANGES.columns, (service_changes.c.sequence.desc(),))

        async def work(connection: AsyncConnection) -> Sequence[AdapterHistory]:
            seen = {(each.namespace, each.adapter): each for each in await _VERSIONS.all(connection, newest)}
            served = {(each.namespace, each.adapter): each.version for each in await _CHANGES.all(connection, last)}
            return [AdapterHistory(*key, seen.get(key), served.get(key)) for key in sorted({*seen, *served})]

        return await self._database.read(work)
