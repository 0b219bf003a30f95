"""What the columns of a table show: extremes, means, trends over time, gaps, and which words come most often.

Uses the standard library's statistics only. Takes the first column of dates for the time, and says nothing of trends
when there is none. `write` and `check` take their figures from here too, so that a figure is worked out in one place.
"""

from __future__ import annotations

import re
from collections import Counter
from datetime import date
from itertools import pairwise
from statistics import StatisticsError, correlation, fmean, linear_regression

from steps.documents import Column, Count, Table, Trend

UNITS = {"s": "seconds", "ms": "milliseconds", "deg": "degrees"}
"""How a column's name tells its unit: by its last part."""
DAYS_PER_YEAR = 365.2425
RECENT_YEARS = 10
COMMONEST_MAX = 3
DATE = re.compile(r"(\d{4})(?:-(\d\d))?(?:-(\d\d))?")


def columns_of(table: Table) -> list[Column]:
    """Describe every column. A column is of numbers or dates when all its cells are, and else of words."""
    cells = list(zip(*table.rows, strict=True)) if table.rows else [()] * len(table.columns)
    kinds = [_kind(column) for column in cells]
    times = next((column for column, kind in zip(cells, kinds, strict=True) if kind == "date"), None)
    marks = times or (cells[0] if cells else ())
    described = []
    for name, column, kind in zip(table.columns, cells, kinds, strict=True):
        if kind == "number":
            described.append(_number_column(name, column, marks, times))
        elif kind == "date":
            described.append(_date_column(name, column))
        else:
            described.append(_word_column(name, column))
    return described


def label(name: str) -> str:
    """A column's name for a reader: without its unit, and with spaces."""
    parts = name.split("_")
    return " ".join(parts[:-1] if parts[-1] in UNITS else parts)


def year_of(written: str) -> float:
    """A date as a number of years: "1974-07" is near 1974.5."""
    match = DATE.fullmatch(written)
    assert match is not None, written
    year, month, day = (int(part) if part else 1 for part in match.groups())
    start = date(year, 1, 1)
    return year + (date(year, month, day) - start).days / DAYS_PER_YEAR


def _kind(column: tuple[str, ...]) -> str:
    written = [cell for cell in column if cell]
    if written and all(DATE.fullmatch(cell) and 1000 <= int(cell[:4]) <= 2999 for cell in written):  # noqa: PLR2004
        return "date"
    return "number" if written and all(_is_number(cell) for cell in written) else "words"


def _is_number(cell: str) -> bool:
    try:
        return float(cell) == float(cell)  # not a number is not equal to itself
    except ValueError:
        return False


def _number_column(name: str, column: tuple[str, ...], marks: tuple[str, ...], times: tuple[str, ...] | None) -> Column:
    written = [(mark, cell) for mark, cell in zip(marks, column, strict=True) if cell]
    lowest = min(written, key=lambda pair: float(pair[1]))
    highest = max(written, key=lambda pair: float(pair[1]))
    trend = recent = None
    if times:
        points = [(year_of(mark), float(cell)) for mark, cell in written]
        trend = _trend(points, written[0][0])
        if points[-1][0] - points[0][0] > 2 * RECENT_YEARS:
            since = next(index for index, point in enumerate(points) if point[0] >= points[-1][0] - RECENT_YEARS)
            recent = _trend(points[since:], written[since][0])
    return Column(
        name=name,
        kind="number",
        unit=UNITS.get(name.rsplit("_", maxsplit=1)[-1], ""),
        count=len(written),
        missing=len(column) - len(written),
        distinct=len({cell for _, cell in written}),
        first=written[0][1],
        last=written[-1][1],
        lowest=lowest[1],
        lowest_at=_standing(written, lowest),
        highest=highest[1],
        highest_at=_standing(written, highest),
        mean=round(fmean(float(cell) for _, cell in written), 4),
        trend=trend,
        recent_trend=recent,
    )


def _standing(written: list[tuple[str, str]], extreme: tuple[str, str]) -> str:
    """In which row an extreme stands, in which two, or in how many."""
    marks = [mark for mark, cell in written if float(cell) == float(extreme[1])]
    return " and ".join(marks) if len(marks) <= 2 else f"{len(marks)} rows"  # noqa: PLR2004


def _trend(points: list[tuple[float, float]], since: str) -> Trend | None:
    """The least-squares line; None when there are too few points, or all have one value."""
    if len(points) < 5:  # noqa: PLR2004  # a line through fewer says nothing
        return None
    times, values = zip(*points, strict=True)
    try:
        return Trend(
            since=since,
            per_year=round(linear_regression(times, values).slope, 5),
            fit=round(correlation(times, values) ** 2, 3),
        )
    except StatisticsError:
        return None


def _date_column(name: str, column: tuple[str, ...]) -> Column:
    written = sorted(cell for cell in column if cell)
    gaps = sorted((round(year_of(later) - year_of(earlier), 3), earlier, later) for earlier, later in pairwise(written))
    uneven = bool(gaps) and gaps[-1][0] > 2 * gaps[len(gaps) // 2][0]
    return Column(
        name=name,
        kind="date",
        count=len(written),
        missing=len(column) - len(written),
        distinct=len(set(written)),
        first=written[0],
        last=written[-1],
        longest_gap=gaps[-1][1:] if uneven else None,
    )


def _word_column(name: str, column: tuple[str, ...]) -> Column:
    written = [cell for cell in column if cell]
    counts = Counter(written)
    commonest = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:COMMONEST_MAX]
    repeats = bool(written) and len(counts) <= 0.6 * len(written) and len(written) > 0.5 * len(column)
    return Column(
        name=name,
        kind="words",
        count=len(written),
        missing=len(column) - len(written),
        distinct=len(counts),
        first=written[0] if written else "",
        last=written[-1] if written else "",
        commonest=tuple(Count(text=text, count=count) for text, count in commonest) if repeats else (),
    )
