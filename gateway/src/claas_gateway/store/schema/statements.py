"""Statements that the two databases spell alike and SQLAlchemy does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, Table, func, literal, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.dml import Insert

from claas_gateway.store.database.transactions import Database
from claas_gateway.store.schema.columns import Texts


def insert_unless_there(database: Database, table: Table) -> Insert:
    """Insert a row; nothing happens if a unique value of it is there already."""
    if database.is_sqlite:
        return sqlite.insert(table).on_conflict_do_nothing()
    return postgresql.insert(table).on_conflict_do_nothing()


def insert_or_change(database: Database, table: Table, keep: Sequence[str] = ()) -> Insert:
    """Insert a row, or give the row with its primary key the new values; a row that has them is not written. Of the
    columns `keep` a value that is known is not replaced by none."""
    key = list(table.primary_key.columns)
    statement = sqlite.insert(table) if database.is_sqlite else postgresql.insert(table)
    new = {
        column.name: func.coalesce(statement.excluded[column.name], column)
        if column.name in keep
        else statement.excluded[column.name]
        for column in table.columns
        if not column.primary_key
    }
    return statement.on_conflict_do_update(
        index_elements=key,
        set_=new,
        where=or_(*(table.c[name].is_distinct_from(value) for name, value in new.items())),
    )


def within(table: Table, namespace: str | None, adapter: str | None) -> list[ColumnElement[bool]]:
    """Conditions: in a namespace, of an adapter; None: any."""
    pairs = ((table.c.namespace, namespace), (table.c.adapter, adapter))
    return [column == wanted for column, wanted in pairs if wanted is not None]


def first_of_each_adapter(
    table: Table, columns: Sequence[ColumnElement[Any]], order: Sequence[ColumnElement[Any]]
) -> Select[Any]:
    """The first row of each adapter in an order."""
    key = (table.c.namespace, table.c.adapter)
    place = func.row_number().over(partition_by=key, order_by=order).label("place")
    ranked = select(*columns, place).subquery()
    return select(*(ranked.c[column.key] for column in columns if column.key is not None)).where(ranked.c.place == 1)


def contains_text(database: Database, column: ColumnElement[Any], text: str) -> ColumnElement[bool]:
    """Whether a text is among those of a column of Texts."""
    wanted = literal((text,), Texts())
    if database.is_sqlite:
        return func.instr(column, wanted) > 0
    return func.position(wanted.op("IN")(column)) > 0


def some_of(column: ColumnElement[str], wanted: Select[tuple[str]], count: int) -> ColumnElement[bool]:
    """Whether a row is among the first of those that are wanted: neither database deletes with a limit by itself."""
    return column.in_(wanted.limit(count))
