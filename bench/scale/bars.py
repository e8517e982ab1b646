"""Figures with their bars, and the table that shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class Limit(Enum):
    """On which side of its bar a figure has to be."""

    AT_LEAST = ">="
    AT_MOST = "<="
    BELOW = "<"


@dataclass(frozen=True)
class Bar:
    """What a figure has to keep to."""

    limit: Limit
    value: float

    def met_by(self, value: float) -> bool:
        """Whether a value keeps to it."""
        match self.limit:
            case Limit.AT_LEAST:
                return value >= self.value
            case Limit.AT_MOST:
                return value <= self.value
            case Limit.BELOW:
                return value < self.value


@dataclass(frozen=True)
class Figure:
    """What was measured; `value` None: it did not come to it. Without a bar it is there to be read."""

    name: str
    value: float | None
    unit: str
    bar: Bar | None = None

    @property
    def met(self) -> bool:
        """Whether it keeps to its bar; one that did not come to it does not."""
        return self.bar is None or (self.value is not None and self.bar.met_by(self.value))

    def document(self) -> dict[str, object]:
        """As JSON has it."""
        bar = f"{self.bar.limit.value} {self.bar.value:g}" if self.bar else None
        return {"name": self.name, "value": self.value, "unit": self.unit, "bar": bar, "met": self.met}


def at_least(value: float) -> Bar:
    """A bar."""
    return Bar(Limit.AT_LEAST, value)


def at_most(value: float) -> Bar:
    """A bar."""
    return Bar(Limit.AT_MOST, value)


def below(value: float) -> Bar:
    """A bar."""
    return Bar(Limit.BELOW, value)


def table(figures: Sequence[Figure]) -> str:
    """The figures as a Markdown table."""
    rows = [("Figure", "Measured", "Bar", "")]
    for figure in figures:
        measured = "none" if figure.value is None else f"{figure.value:,.4g} {figure.unit}".strip()
        bar = f"{figure.bar.limit.value} {figure.bar.value:g}" if figure.bar else ""
        rows.append((figure.name, measured, bar, ("met" if figure.met else "MISSED") if figure.bar else ""))
    return markdown(rows)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table; the first is its head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
