"""The geometry of a chart over versions: where lines, points, ticks and marks lie. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from claas_gateway.dashboard.formats import number

WIDTH = 400.0
HEIGHT = 150.0
LEFT = 46.0
RIGHT = 12.0
TOP = 12.0
BOTTOM = 24.0
_MOST_LABELS = 7
_INTERVALS = 4
_LARGEST = 1e300
_SMALLEST = 1e-290
"""Values beyond are drawn at the edge."""
_MOST_POINTS = 80
"""With more versions than that, a line has no points on it."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line: a value for each version, None where nothing was measured."""

    name: str
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Point:
    """One value in the picture."""

    x: float
    y: float
    version: int
    value: float


@dataclass(frozen=True, slots=True)
class Line:
    """One series in the picture; it has a gap where a value is missing."""

    name: str
    style: int
    """Number of its colour and dashes."""
    paths: tuple[str, ...]
    """The attribute `points` of each polyline."""
    points: tuple[Point, ...]
    """Drawn as dots: all, or with many versions only those that no line reaches."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A label on an axis."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A version that was rolled back or rejected, or that is served."""

    x: float
    text: str


@dataclass(frozen=True, slots=True)
class Marks:
    """What is to be marked, by version."""

    rolled_back: Mapping[int, int]
    """Versions that an older one took the place of, and that older one."""
    rejected: frozenset[int]
    served: int | None


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture: some series over the same versions."""

    key: str
    title: str
    lines: tuple[Line, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    rollbacks: tuple[Mark, ...]
    rejections: tuple[Mark, ...]
    served: Mark | None
    description: str

    @property
    def empty(self) -> bool:
        """Whether nothing was measured."""
        return not any(line.paths or line.points for line in self.lines)


def panel(key: str, title: str, versions: Sequence[int], series: Sequence[Series], marks: Marks) -> Panel:
    """Place series over versions, which are in ascending order."""
    known = [value for each in series for value in each.values if _is_measured(value)]
    low, high, ticks = _scale([value for value in known if value is not None])
    places = _across(len(versions))
    by_version = dict(zip(versions, places, strict=True))

    def height(value: float) -> float:
        share = (min(max(value, low), high) - low) / (high - low)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP), 2)

    return Panel(
        key=key,
        title=title,
        lines=tuple(_line(each, index, versions, places, height) for index, each in enumerate(series)),
        across=_version_ticks(versions, places),
        up=tuple(Tick(height(value), number(value)) for value in ticks),
        rollbacks=tuple(
            Mark(by_version[left], f"version {left} rolled back to {taken}")
            for left, taken in sorted(marks.rolled_back.items())
            if left in by_version
        ),
        rejections=tuple(
            Mark(by_version[each], f"version {each} rejected") for each in sorted(marks.rejected & set(by_version))
        ),
        served=Mark(by_version[marks.served], f"version {marks.served} in service")
        if marks.served is not None and marks.served in by_version
        else None,
        description=_description(versions, series, marks),
    )


def _is_measured(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _across(count: int) -> list[float]:
    inside = WIDTH - LEFT - RIGHT
    if count == 1:
        return [LEFT + inside / 2]
    return [round(LEFT + inside * index / (count - 1), 2) for index in range(count)]


def _line(
    series: Series, index: int, versions: Sequence[int], places: Sequence[float], height: Callable[[float], float]
) -> Line:
    runs: list[list[Point]] = [[]]
    for version, x, value in zip(versions, places, series.values, strict=True):
        if value is None or not math.isfinite(value):
            runs.append([])
        else:
            runs[-1].append(Point(x, height(value), version, value))
    every = [point for run in runs for point in run]
    lonely = [run[0] for run in runs if len(run) == 1]
    return Line(
        name=series.name,
        style=index % 6,
        paths=tuple(" ".join(f"{point.x:g},{point.y:g}" for point in run) for run in runs if len(run) > 1),
        points=tuple(every if len(versions) <= _MOST_POINTS else lonely),
    )


def _version_ticks(versions: Sequence[int], places: Sequence[float]) -> tuple[Tick, ...]:
    if not versions:
        return ()
    stride = max(1, math.ceil((len(versions) - 1) / (_MOST_LABELS - 1)))
    chosen = list(range(len(versions) - 1, -1, -stride))
    return tuple(Tick(places[index], str(versions[index])) for index in reversed(chosen))


def _scale(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """Lowest and highest value of the axis, and its ticks, of which the first and the last are its ends. Every axis
    holds zero, so that heights can be compared."""
    if not values:
        return 0.0, 1.0, []
    bound = _LARGEST / 2
    low, high = max(min(*values, 0.0), -bound), min(max(*values, 0.0), bound)
    if high - low < _SMALLEST:
        high = low + 1.0
    step = _round_step((high - low) / _INTERVALS)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [index * step for index in range(first, last + 1)]
    return ticks[0], ticks[-1], ticks


def _round_step(rough: float) -> float:
    """The next 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    for factor in (1.0, 2.0, 5.0):
        if rough <= factor * power * (1 + 1e-9):
            return factor * power
    return 10.0 * power


def _description(versions: Sequence[int], series: Sequence[Series], marks: Marks) -> str:
    """What the picture shows, in words."""
    told = []
    for each in series:
        pairs = [
            (version, value)
            for version, value in zip(versions, each.values, strict=True)
            if value is not None and math.isfinite(value)
        ]
        if not pairs:
            continue
        lowest, highest = min(pairs, key=lambda pair: pair[1]), max(pairs, key=lambda pair: pair[1])
        told.append(f"{each.name}: {_at(pairs[0])}, {_at(pairs[-1])}; lowest {_at(lowest)}, highest {_at(highest)}.")
    told += [f"Version {left} was rolled back to {taken}." for left, taken in sorted(marks.rolled_back.items())]
    if marks.rejected:
        told.append(f"Rejected: {', '.join(str(each) for each in sorted(marks.rejected))}.")
    return " ".join(told) or "Nothing was measured."


def _at(pair: tuple[int, float]) -> str:
    return f"{number(pair[1])} at version {pair[0]}"
