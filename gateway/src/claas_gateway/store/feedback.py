"""Requests that brought feedback, and their items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, and_, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from claas_gateway.errors import Conflicting
from claas_gateway.records import FeedbackBatch, FeedbackItem, FeedbackRequest, ItemOutcome, ItemState
from claas_gateway.store.database.transactions import Database
from claas_gateway.store.interface import ANY_ITEM, Accepted, ItemFilter, ItemPage
from claas_gateway.store.schema.rows import Rows, values_of
from claas_gateway.store.schema.statements import contains_text, insert_unless_there, within
from claas_gateway.store.schema.tables import batches as batch_table
from claas_gateway.store.schema.tables import items, requests, versions

_ITEMS = Rows(items, FeedbackItem)
NOT_FINAL = and_(items.c.state != ItemState.IN_VERSION, items.c.state != ItemState.REFUSED)
_REQUESTS = Rows(requests, FeedbackRequest)
_NEWEST_FIRST = (items.c.created.desc(), items.c.id.desc())
_OLDEST_FIRST = (items.c.created, items.c.request_id, items.c.position)


class SqlFeedback:
    """The tables of requests and items."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._insert_request = insert_unless_there(database, requests)

    async def accept(
        self, request: FeedbackRequest, brought: Sequence[FeedbackItem], batches: Sequence[FeedbackBatch] = ()
    ) -> Accepted:
        """Store a request, its items and its batches, in one transaction. Raises Conflicting."""

        async def work(connection: AsyncConnection) -> Accepted:
            written = await connection.execute(self._insert_request, values_of(request))
            if not written.rowcount:
                return await _accepted_before(connection, request)
            if batches:
                await connection.execute(insert(batch_table), [values_of(batch) for batch in batches])
            if brought:
                await connection.execute(insert(items), _item_rows(brought))
            return Accepted(request, tuple(brought))

        return await self._database.write(work)

    async def request(self, request_id: str) -> Accepted | None:
        """A request with its items as they are now."""
        return await self._database.read(lambda connection: _accepted(connection, requests.c.id == request_id))

    async def by_key(self, namespace: str, key_name: str, idempotency_key: str) -> Accepted | None:
        """The request that was stored under an idempotency key, with its items as they are now."""
        return await self._database.read(
            lambda connection: _accepted(connection, _has_key(namespace, key_name, idempotency_key))
        )

    async def item(self, item_id: str) -> FeedbackItem | None:
        """One item."""
        found = await self._items(items.c.id == item_id, order=_OLDEST_FIRST)
        return found[0] if found else None

    async def items_of_version(self, namespace: str, adapter: str, version: int) -> Sequence[FeedbackItem]:
        """The items that a version learned from.

        An adapter that was deleted and begun anew counts from 0 again: items of its predecessor's version of that
        number, which another job made, are left out.
        """
        another = (
            select(batch_table.c.id)
            .join(versions, versions.c.job_uid != batch_table.c.job_uid)
            .where(batch_table.c.id == items.c.batch_id, versions.c.number == version)
            .where(*within(versions, namespace, adapter))
        )
        return await self._items(
            items.c.state == ItemState.IN_VERSION,
            items.c.version == version,
            *within(items, namespace, adapter),
            ~another.exists(),
            order=_OLDEST_FIRST,
        )

    async def items_of_batch(self, batch_id: str) -> Sequence[FeedbackItem]:
        """The members of a batch, in the order of its samples."""
        return await self._items(items.c.batch_id == batch_id, order=(items.c.batch_position,))

    async def page(
        self, namespace: str | None, adapter: str | None, page: int, per_page: int, only: ItemFilter = ANY_ITEM
    ) -> ItemPage:
        """Items, newest first; pages count from 1."""
        wanted = [*within(items, namespace, adapter), *self._passing(only)]
        rows = _ITEMS.select().where(*wanted).order_by(*_NEWEST_FIRST).limit(per_page).offset((page - 1) * per_page)

        async def work(connection: AsyncConnection) -> ItemPage:
            total = await connection.scalar(select(func.count()).select_from(items).where(*wanted))
            return ItemPage(tuple(await _ITEMS.all(connection, rows)), total or 0)

        return await self._database.read(work)

    async def counts(self) -> Mapping[tuple[str, str], Mapping[ItemState, int]]:
        """How many items are in each state, by namespace and adapter."""
        key = (items.c.namespace, items.c.adapter, items.c.state)
        statement = select(*key, func.count()).group_by(*key)

        async def work(connection: AsyncConnection) -> Mapping[tuple[str, str], Mapping[ItemState, int]]:
            found: dict[tuple[str, str], dict[ItemState, int]] = {}
            for namespace, adapter, state, count in (await connection.execute(statement)).all():
                found.setdefault((namespace, adapter), {})[state] = count
            return found

        return await self._database.read(work)

    async def waiting(self, namespace: str, adapter: str) -> Sequence[FeedbackItem]:
        """Items that wait for a batch, oldest first."""
        return await self._items(
            items.c.state == ItemState.STORED, *within(items, namespace, adapter), order=_OLDEST_FIRST
        )

    async def waiting_adapters(self) -> Sequence[tuple[str, str]]:
        """Namespace and name of adapters that have items waiting."""
        statement = (
            select(items.c.namespace, items.c.adapter)
            .where(items.c.state == ItemState.STORED)
            .distinct()
            .order_by(items.c.namespace, items.c.adapter)
        )

        async def work(connection: AsyncConnection) -> Sequence[tuple[str, str]]:
            return [(namespace, adapter) for namespace, adapter in (await connection.execute(statement)).all()]

        return await self._database.read(work)

    async def refuse(self, outcomes: Sequence[ItemOutcome]) -> None:
        """Refuse items that are not final yet."""

        async def work(connection: AsyncConnection) -> None:
            for outcome in sorted(outcomes, key=lambda each: each.item_id):
                await connection.execute(
                    update(items)
                    .where(items.c.id == outcome.item_id, NOT_FINAL)
                    .values(state=ItemState.REFUSED, reason=outcome.reason, message=outcome.message)
                )

        if outcomes:
            await self._database.write(work)

    async def answered_after(self, item_id: str, answer: str) -> None:
        """Write down what the version that learned from an item answers to its prompt."""

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(
                update(items).where(items.c.id == item_id, items.c.erased.is_(False)).values(answer_after=answer)
            )

        await self._database.write(work)

    def _passing(self, only: ItemFilter) -> list[ColumnElement[bool]]:
        conditions: list[ColumnElement[bool]] = []
        if only.state is not None:
            conditions.append(items.c.state == only.state)
        if only.tag is not None:
            conditions.append(contains_text(self._database, items.c.tags, only.tag))
        if only.lowest_rating is not None:
            conditions.append(items.c.rating >= only.lowest_rating)
        if only.highest_rating is not None:
            conditions.append(items.c.rating <= only.highest_rating)
        return conditions

    async def _items(
        self, *wanted: ColumnElement[bool], order: Sequence[ColumnElement[Any]]
    ) -> Sequence[FeedbackItem]:
        statement = _ITEMS.select().where(*wanted).order_by(*order)
        return await self._database.read(lambda connection: _ITEMS.all(connection, statement))


def _item_rows(brought: Sequence[FeedbackItem]) -> list[dict[str, object]]:
    ordered = sorted(brought, key=lambda item: item.position)
    return [{**values_of(item), "batch_position": place} for place, item in enumerate(ordered)]


def _has_key(namespace: str, key_name: str, idempotency_key: str) -> ColumnElement[bool]:
    return and_(
        requests.c.namespace == namespace,
        requests.c.key_name == key_name,
        requests.c.idempotency_key == idempotency_key,
    )


async def _accepted(connection: AsyncConnection, wanted: ColumnElement[bool]) -> Accepted | None:
    request = await _REQUESTS.one(connection, _REQUESTS.select().where(wanted))
    if request is None:
        return None
    brought = _ITEMS.select().where(items.c.request_id == request.id).order_by(items.c.position)
    return Accepted(request, tuple(await _ITEMS.all(connection, brought)))


async def _accepted_before(connection: AsyncConnection, request: FeedbackRequest) -> Accepted:
    known = requests.c.id == request.id
    if request.idempotency_key is not None:
        known = or_(known, _has_key(request.namespace, request.key_name, request.idempotency_key))
    found = await _accepted(connection, known)
    if found is None:
        raise RuntimeError("a request is neither new nor known")
    if found.request.body_hash != request.body_hash:
        raise Conflicting("this idempotency key was used with another body: use a new key for a new request")
    # The same identifier: this very call committed it before its connection was lost.
    return Accepted(found.request, found.items, repeated=found.request.id != request.id)
