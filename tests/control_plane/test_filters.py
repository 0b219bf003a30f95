"""Filters against stores: what a filter means in words is what both stores find, whatever the tasks are."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.types.test_filters import terms

from llama_deploy.control_plane.filters import task_filter
from llama_deploy.errors import InvalidRequestError
from llama_deploy.state_stores import MemoryStore, SQLiteStore, StateStore
from llama_deploy.state_stores.base import DeadLetterRow, HistoryRow, TaskRow, Transition
from llama_deploy.types.filters import Filter, Term, parse_filter, states_of

NOW = 1_800_000_000.0
KINDS = ("child", "retry", "replay", "fork", "redrive", "import")
WORDS = st.sampled_from(["a", "ab", "b", "a b", "", "retry:a", "child:ab", "LD502"])
TIMES = st.sampled_from([NOW - age for age in (0, 1, 60, 3_600, 86_400, 500_000, 900_000_000)])


@st.composite
def rows(draw: st.DrawFn) -> TaskRow:
    """Any row of a task, its id aside."""
    state = draw(st.sampled_from(["submitted", "working", "completed", "failed", "canceled"]))
    ended = draw(TIMES) if state in ("completed", "failed", "canceled") else None
    return TaskRow(
        "", draw(WORDS), draw(WORDS), state, 1, draw(st.integers(0, 4)), draw(TIMES), draw(TIMES), ended,
        draw(WORDS), draw(st.integers(0, 1)), draw(WORDS),
    )  # fmt: skip


def given_up(row: TaskRow) -> bool:
    """Whether something of the task was given up: of every other one here."""
    return row.steps % 2 == 1


def fits(row: TaskRow, term: Term) -> bool:
    """What a term means, said once more and in plain words."""
    if term.field == "ended" and row.ended_at is None:
        return False
    return holds(row, term) is not term.negated


def holds(row: TaskRow, term: Term) -> bool:
    session = "" if row.session_id == row.task_id else row.session_id
    texts = {"service": row.service, "session": session, "id": row.task_id, "error": row.error, "origin": row.origin}
    if term.field == "state":
        return row.state in states_of(term)
    if term.field == "dead":
        return ("yes" if given_up(row) else "no") in term.values
    if term.field == "paused":
        return ("yes" if row.paused else "no") in term.values
    if term.field in texts or term.field == "from":
        words = [str(value) for value in term.values]
        if term.prefix and "" in words:
            return bool(texts.get(term.field, row.origin))
        if term.field == "from":
            words = [f"{kind}:{word}" for kind in KINDS for word in words]
        found = texts.get(term.field, row.origin)
        return any(found.startswith(word) if term.prefix else found == word for word in words)
    if term.field == "hops":
        return compared(row.steps, term.operator, term.values)
    moment = {"created": row.created_at, "updated": row.updated_at, "ended": row.ended_at, "age": row.created_at}
    found_at: Any = moment[term.field]
    value = term.values[0]
    if isinstance(value, timedelta):
        return compared(NOW - value.total_seconds(), term.operator, (found_at,))
    assert isinstance(value, datetime)
    return compared(found_at, term.operator, (value.timestamp(),))


def compared(found: float, operator: str, values: tuple[Any, ...]) -> bool:
    value = values[0]
    comparisons: dict[str, Callable[[], bool]] = {
        ":": lambda: found in values,
        "<": lambda: found < value,
        "<=": lambda: found <= value,
        ">": lambda: found > value,
        ">=": lambda: found >= value,
    }
    return comparisons[operator]()


async def record(store: StateStore, row: TaskRow) -> None:
    done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    entry = HistoryRow(row.task_id, 1, row.created_at, "submitted", b"{}")
    letter = DeadLetterRow(f"{row.task_id}:1", row.task_id, "s", 1, row.created_at, "LD502", "no")
    dead = (letter,) if given_up(row) else ()
    store.record(Transition(settled=done.set_result, task=row, entry=entry, dead=dead))
    assert await done is None


async def found_in(store: StateStore, tasks: list[TaskRow], filters: list[Filter]) -> list[list[str]]:
    await store.open()
    try:
        for row in tasks:
            await record(store, row)
        wheres = [task_filter(filter_, now=NOW) for filter_ in filters]
        listings = [await store.list_tasks(where, limit=100) for where in wheres]
        return [[row.task_id for row in listing.rows] for listing in listings]
    finally:
        await store.close()


@settings(max_examples=40)
@given(st.lists(rows(), max_size=8), st.lists(st.lists(terms(), max_size=3), min_size=1, max_size=8))
def test_both_stores_find_what_a_filter_means(made: list[TaskRow], asked: list[list[Term]]) -> None:
    tasks = [
        TaskRow(f"t{number}", row.session_id or f"t{number}", *list(row_fields(row))[2:])
        for number, row in enumerate(made)
    ]
    filters = [Filter(tuple(some)) for some in asked]
    meant = [
        [row.task_id for row in reversed(tasks) if all(fits(row, term) for term in filter_.terms)]
        for filter_ in filters
    ]
    with tempfile.TemporaryDirectory() as folder:
        assert asyncio.run(found_in(MemoryStore(), tasks, filters)) == meant
        assert asyncio.run(found_in(SQLiteStore(Path(folder) / "store.db"), tasks, filters)) == meant


def row_fields(row: TaskRow) -> list[Any]:
    return [getattr(row, name) for name in row.__struct_fields__]


def test_what_stores_have_an_index_for_is_asked_so() -> None:
    where = task_filter("state:failed service:a session:s", now=NOW)
    assert (where.states, where.service, where.session_id, where.conditions) == (("failed",), "a", "s", ())


def test_a_filter_and_the_words_beside_it_must_both_hold() -> None:
    where = task_filter(parse_filter("state:failed"), now=NOW, states=["working"], service="a")
    assert (where.states, where.service) == (("working",), "a")
    assert [condition.column for condition in where.conditions] == ["state"]
    with pytest.raises(InvalidRequestError, match="no task state"):
        task_filter(None, now=NOW, states=["done"])
