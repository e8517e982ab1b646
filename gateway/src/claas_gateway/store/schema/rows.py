"""From rows to records and back; a column is called as the record's field is."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sqlalchemy import ColumnElement, Select, Table, select
from sqlalchemy.ext.asyncio import AsyncConnection

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Record = TypeVar("Record", bound=DataclassInstance)
else:
    Record = TypeVar("Record")


class Rows(Generic[Record]):
    """The rows of a table that are records of one class."""

    def __init__(self, table: Table, record: type[Record]) -> None:
        self._record = record
        self.columns: list[ColumnElement[Any]] = [table.c[field.name] for field in fields(record)]

    def select(self) -> Select[Any]:
        """Select records."""
        return select(*self.columns)

    async def all(self, connection: AsyncConnection, statement: Select[Any]) -> list[Record]:
        """All records that a statement selects."""
        return [self._record(*row) for row in (await connection.execute(statement)).all()]

    async def one(self, connection: AsyncConnection, statement: Select[Any]) -> Record | None:
        """The only record that a statement selects, if there is one."""
        row = (await connection.execute(statement)).one_or_none()
        return None if row is None else self._record(*row)


def values_of(record: DataclassInstance) -> dict[str, object]:
    """A record as values for its columns."""
    return {field.name: getattr(record, field.name) for field in fields(record)}
