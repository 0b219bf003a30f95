"""What the conditions of a task list mean: checked once, then as a predicate on rows and as SQL over `tasks`.

The SQL is built from a closed set of column names; values are always bound. Where a partial index could serve a
condition, the term that the index asks for is said along with it, because SQLite does not conclude it from a bound
value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llama_deploy.errors import InvalidRequestError
from llama_deploy.state_stores.rows import Condition, TaskFilter, TaskRow

CONDITIONS_MAX = 50
VALUES_MAX = 1_000
"""Values of all conditions of a filter together."""

ENDED_STATES = ("completed", "failed", "canceled", "rejected")
UNHAPPY_STATES = ("failed", "canceled", "rejected")
_TEXT = frozenset({"task_id", "session_id", "service", "state", "error", "origin"})
_NUMBERS = frozenset({"paused", "dead", "steps", "created_at", "updated_at", "ended_at"})
_COMPARISONS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "lt": ("<", lambda found, value: found < value),
    "le": ("<=", lambda found, value: found <= value),
    "gt": (">", lambda found, value: found > value),
    "ge": (">=", lambda found, value: found >= value),
}
_SQL_INTEGER_MAX = 2**63 - 1
_SESSION_SQL = "CASE WHEN session_id <> task_id THEN session_id ELSE '' END"
_LAST_CHARACTER = "\U0010ffff"


def conditions_of(where: TaskFilter) -> tuple[Condition, ...]:
    """Every condition of the filter, checked. Raises `InvalidRequestError` for one that makes no sense."""
    conditions = list(where.conditions)
    if where.states is not None:
        conditions.append(Condition(column="state", values=where.states))
    if where.service is not None:
        conditions.append(Condition(column="service", values=(where.service,)))
    if where.session_id is not None:
        conditions.append(Condition(column="session_id", values=(where.session_id,)))
    if len(conditions) > CONDITIONS_MAX or sum(len(condition.values) for condition in conditions) > VALUES_MAX:
        raise InvalidRequestError(
            "the filter has too many conditions",
            why=f"at most {CONDITIONS_MAX} conditions with {VALUES_MAX} values are looked at",
            fix="ask for less at once",
        )
    return tuple(_checked(condition) for condition in conditions)


def _checked(condition: Condition) -> Condition:
    column, operator = condition.column, condition.operator
    if column not in _TEXT | _NUMBERS:
        raise InvalidRequestError(f"a task has no column {column!r}", fix=f"use {', '.join(sorted(_TEXT | _NUMBERS))}")
    if operator not in ("in", "prefix", *_COMPARISONS):
        raise InvalidRequestError(f"{column}: there is no comparison {operator!r}")
    if operator == "prefix" and column in _NUMBERS:
        raise InvalidRequestError(f"{column}: a number has no beginning", fix="compare it with lt, le, gt or ge")
    if column == "dead" and operator != "in":
        raise InvalidRequestError("dead: it is 0 or 1", fix="compare it with in")
    if operator in _COMPARISONS and len(condition.values) != 1:
        raise InvalidRequestError(f"{column}: {operator} takes one value, not {len(condition.values)}")
    for value in condition.values:
        _check_value(column, value)
    return condition


def _check_value(column: str, value: object) -> None:
    if column in _TEXT:
        if not isinstance(value, str):
            raise InvalidRequestError(f"{column}: {value!r} is not a text")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequestError(f"{column}: {value!r} is not a text that can be stored") from error
    elif isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise InvalidRequestError(f"{column}: {value!r} is not a number")


def predicate(where: TaskFilter, given_up: Callable[[str], bool] = lambda _: False) -> Callable[[TaskRow], bool]:
    """Whether a row passes the filter. `given_up`: whether a task has a dead letter that was not sent again."""
    conditions = conditions_of(where)
    return lambda row: all(_holds(row, condition, given_up) for condition in conditions)


def _holds(row: TaskRow, condition: Condition, given_up: Callable[[str], bool]) -> bool:
    found: Any = given_up(row.task_id) if condition.column == "dead" else getattr(row, condition.column)
    if found is None:
        return False
    if condition.column == "session_id" and found == row.task_id:
        found = ""
    if condition.operator == "in":
        holds = found in condition.values
    elif condition.operator == "prefix":
        holds = found.startswith(condition.values)
    else:
        holds = _COMPARISONS[condition.operator][1](found, condition.values[0])
    return holds is not condition.negated


def where_clauses(where: TaskFilter, *, letters: str = "dead_letters") -> tuple[list[str], list[Any]]:
    """The terms of a `WHERE` over `tasks`, and their parameters; `letters` is the table of dead letters."""
    clauses: list[str] = []
    parameters: list[Any] = []
    for condition in conditions_of(where):
        sql = _sql(condition, parameters) if condition.column != "dead" else _dead_sql(condition, letters)
        clauses.append(f"NOT ({sql})" if condition.negated else sql)
        if condition.column == "ended_at":
            clauses.append("ended_at IS NOT NULL")
        if not condition.negated:
            clauses += _hints(condition)
    return clauses, parameters


def _sql(condition: Condition, parameters: list[Any]) -> str:
    column = _SESSION_SQL if _needs_empty_session(condition) else condition.column
    values = [_bindable(value) for value in condition.values]
    if condition.operator == "in":
        parameters += values
        return f"{column} IN ({', '.join('?' * len(values))})" if values else "FALSE"
    if condition.operator == "prefix":
        return " OR ".join(_prefixes(column, condition.values, parameters)).join("()") if values else "FALSE"
    parameters += values
    return f"{column} {_COMPARISONS[condition.operator][0]} ?"


def _dead_sql(condition: Condition, letters: str) -> str:
    given_up = f"task_id IN (SELECT l.task_id FROM {letters} AS l WHERE l.redriven = '')"  # noqa: S608 - no user text
    terms = {1: given_up, 0: f"NOT {given_up}"}
    wanted = [sql for value, sql in terms.items() if value in condition.values]
    return f"({' OR '.join(wanted)})" if wanted else "FALSE"


def _needs_empty_session(condition: Condition) -> bool:
    """Whether tasks without a session have to be seen as ones with the session ''."""
    if condition.column != "session_id":
        return False
    return condition.negated or condition.operator not in ("in", "prefix") or "" in condition.values


def _prefixes(column: str, values: Sequence[Any], parameters: list[Any]) -> Iterator[str]:
    """Text that begins with a value lies between it and the next text that does not, in the order of code points."""
    for value in values:
        parameters.append(value)
        following = _following(value)
        if following is None:
            yield f"{column} >= ?"
        else:
            parameters.append(following)
            yield f"({column} >= ? AND {column} < ?)"


def _following(prefix: str) -> str | None:
    """The first text after all those that begin with the prefix, `None` where there is none."""
    kept = prefix.rstrip(_LAST_CHARACTER)
    if not kept:
        return None
    last = ord(kept[-1]) + 1
    return kept[:-1] + chr(0xE000 if last == 0xD800 else last)  # noqa: PLR2004 - surrogates are no characters


def _hints(condition: Condition) -> Iterator[str]:
    """What follows from the condition and makes a partial index usable."""
    column, values = condition.column, condition.values
    listed = condition.operator == "in"
    if column == "state" and listed:
        if not set(values) & set(ENDED_STATES):
            yield "ended_at IS NULL"
        elif set(values) <= set(UNHAPPY_STATES):
            yield f"state IN ({', '.join(map(repr, UNHAPPY_STATES))})"
    elif column == "session_id" and not _needs_empty_session(condition):
        yield "session_id <> task_id"
    elif column == "origin" and (listed or condition.operator == "prefix") and "" not in values:
        yield "origin <> ''"
    elif column == "paused" and listed and 0 not in values:
        yield "paused <> 0"


def _bindable(value: str | float) -> str | float:
    """A number beyond SQLite's integers compares as the nearest one that it can hold."""
    if isinstance(value, int) and abs(value) > _SQL_INTEGER_MAX:
        return math.inf if value > 0 else -math.inf
    return value
