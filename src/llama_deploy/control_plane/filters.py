"""From a filter's terms to what a store is asked: ages become times, words become columns.

The grammar is in `llama_deploy.types.filters`, the meaning of a condition in `llama_deploy.state_stores.base`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, get_args

from llama_deploy.errors import InvalidRequestError
from llama_deploy.state_stores.base import Condition, TaskFilter
from llama_deploy.types import Origin, TaskState
from llama_deploy.types.filters import Filter, Term, parse_filter, states_of

Comparison = Literal["lt", "le", "gt", "ge"]

_COLUMNS: dict[str, Any] = {
    "state": "state",
    "service": "service",
    "session": "session_id",
    "id": "task_id",
    "error": "error",
    "origin": "origin",
    "from": "origin",
    "paused": "paused",
    "dead": "dead",
    "hops": "steps",
    "created": "created_at",
    "updated": "updated_at",
    "ended": "ended_at",
    "age": "created_at",
}
_COMPARISONS: dict[str, Comparison] = {"<": "lt", "<=": "le", ">": "gt", ">=": "ge"}
_REVERSED: dict[str, Comparison] = {"<": "gt", "<=": "ge", ">": "lt", ">=": "le"}
"""What is older was created earlier."""
_KINDS = tuple(kind for kind in get_args(Origin.model_fields["kind"].annotation) if kind != "schedule")


def task_filter(
    filter_: Filter | str | None = None,
    *,
    now: float,
    states: Sequence[str] = (),
    service: str | None = None,
    session_id: str | None = None,
    oldest_first: bool = False,
) -> TaskFilter:
    """The tasks that fit a filter and what is asked beside it. Raises `InvalidRequestError` for what means nothing."""
    known = [state.value for state in TaskState]
    for state in states:
        if state not in known:
            raise InvalidRequestError(f"there is no task state {state!r}", fix=f"states: {', '.join(known)}")
    terms = parse_filter(filter_).terms if isinstance(filter_, str) else filter_.terms if filter_ is not None else ()
    chosen: tuple[str, ...] | None = tuple(states) or None
    conditions: list[Condition] = []
    for term in terms:
        plain = not term.negated and not term.prefix and len(term.values) == 1
        if term.field == "state" and not term.negated and chosen is None:
            chosen = states_of(term)  # what a store has an index for
        elif term.field == "service" and plain and service is None:
            service = str(term.values[0])
        elif term.field == "session" and plain and session_id is None:
            session_id = str(term.values[0])
        else:
            conditions.append(_condition(term, now))
    return TaskFilter(
        states=chosen,
        service=service,
        session_id=session_id,
        conditions=tuple(conditions),
        oldest_first=oldest_first,
    )


def _condition(term: Term, now: float) -> Condition:
    """One term as a condition on a column."""
    column, negated = _COLUMNS[term.field], term.negated
    if term.operator != ":":
        value = term.values[0]
        if isinstance(value, timedelta):
            seconds = now - value.total_seconds()
            return Condition(column=column, operator=_REVERSED[term.operator], values=(seconds,), negated=negated)
        number = value.timestamp() if isinstance(value, datetime) else value
        assert isinstance(number, float)
        return Condition(column=column, operator=_COMPARISONS[term.operator], values=(number,), negated=negated)
    if term.field == "state":
        return Condition(column=column, values=states_of(term), negated=negated)
    if term.field in ("paused", "dead"):
        flags = tuple({"yes": 1.0, "no": 0.0}[str(value)] for value in term.values)
        return Condition(column=column, values=flags, negated=negated)
    if term.field == "hops":
        return Condition(column=column, values=tuple(float(str(value)) for value in term.values), negated=negated)
    texts = tuple(map(str, term.values))
    if term.prefix and "" in texts:  # any text at all
        return Condition(column=column, values=("",), negated=not negated)
    if term.field == "from":
        texts = tuple(f"{kind}:{text}" for kind in _KINDS for text in texts)
    return Condition(column=column, operator="prefix" if term.prefix else "in", values=texts, negated=negated)
