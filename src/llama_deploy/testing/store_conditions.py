"""The part of the store suite that is about conditions: what a list shows and a count counts, against a plain model.

A third party's store runs it through `StoreConformance`, not by itself.
"""

# ruff: noqa: PLR2004 - the numbers in a test are its facts

from __future__ import annotations

import operator
from typing import Any, Literal

from llama_deploy.errors import InvalidRequestError
from llama_deploy.state_stores.base import Condition, DeadLetterRow, StateStore, TaskFilter, TaskRow
from llama_deploy.testing.recording import AT, StoreSuite, all_tasks, entry_row, record_all, task_row

_COMPARE = {"lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge}
_TEXTS: list[Literal["task_id", "session_id", "service", "state", "error", "origin"]] = [
    "task_id",
    "session_id",
    "service",
    "state",
    "error",
    "origin",
]
_NUMBERS: list[Literal["paused", "steps", "created_at", "updated_at", "ended_at"]] = [
    "paused",
    "steps",
    "created_at",
    "updated_at",
    "ended_at",
]


def _rows() -> list[TaskRow]:
    """Make tasks that differ in every column, some of them in ways that SQL would confuse."""
    odd = ["a", "A", "a%", "a_b", "ab", "\ud7ff", "\ue000x", "\U0010ffff", "\U0010ffff!", "b'--", "ä"]
    rows = []
    for number, text in enumerate(odd):
        ended = number % 3 == 0
        values: dict[str, Any] = {
            "session_id": f"t-{text}" if number % 2 else f"room {text}",
            "service": text,
            "state": ("completed", "failed", "canceled")[number % 9 // 3]
            if ended
            else ("working", "submitted")[number % 2],
            "steps": number,
            "created_at": AT + number,
            "ended_at": AT + number + 0.5 if ended else None,
            "origin": f"child:{text}" if number % 4 == 1 else "",
            "paused": int(number % 5 == 1),
            "error": "LD405" if number % 9 == 3 else "",
        }
        rows.append(task_row(f"t-{text}", **values))
    return rows


def _model(row: TaskRow, condition: Condition) -> bool:
    """Whether the condition holds for the row, said as plainly as possible."""
    found: Any = getattr(row, condition.column)
    if condition.column == "session_id" and found == row.task_id:
        found = ""
    if found is None:
        return False
    if condition.operator == "in":
        holds = any(found == value for value in condition.values)
    elif condition.operator == "prefix":
        holds = any(found[: len(str(value))] == value for value in condition.values)
    else:
        holds = _COMPARE[condition.operator](found, condition.values[0])
    return not holds if condition.negated else holds


def _conditions(rows: list[TaskRow]) -> list[Condition]:
    """Every column with every comparison, on values that occur and values beside them."""
    found: list[Condition] = []
    for negated in (False, True):
        for column in _TEXTS:
            values = [getattr(row, column) for row in rows]
            lists = [(), ("",), (values[0],), tuple(values[:4]), ("", values[5]), ("nobody's",)]
            found += [Condition(column=column, values=some, negated=negated) for some in lists]
            heads = [value[:length] for value in values for length in (0, 1, 2, 3, 7)]
            found += [Condition(column=column, operator="prefix", values=(h,), negated=negated) for h in set(heads)]
            found.append(Condition(column=column, operator="prefix", values=("a", "t-a", "child:"), negated=negated))
            found.append(Condition(column=column, operator="lt", values=(values[3],), negated=negated))
        for number in _NUMBERS:
            for value in (0, 1, 3.5, AT + 3, AT + 3.5, 10**30, -(10**30)):
                found.append(Condition(column=number, values=(value,), negated=negated))
                for comparison in ("lt", "le", "gt", "ge"):
                    found.append(Condition(column=number, operator=comparison, values=(value,), negated=negated))
            found.append(Condition(column=number, values=(), negated=negated))
    return found


class ConditionConformance(StoreSuite):
    """What `list_tasks` and `count_matching` promise of conditions."""

    async def test_every_condition_means_what_it_says(self) -> None:
        rows = _rows()
        async with self.opened() as store:
            await self._record(store, rows)
            for condition in _conditions(rows):
                where = TaskFilter(conditions=(condition,), oldest_first=True)
                expected = [row.task_id for row in rows if _model(row, condition)]
                assert await all_tasks(store, where) == expected, condition
                assert await store.count_matching(where) == len(expected), condition

    async def test_all_conditions_must_hold(self) -> None:
        rows = _rows()
        async with self.opened() as store:
            await self._record(store, rows)
            conditions = (
                Condition(column="created_at", operator="ge", values=(AT + 2,)),
                Condition(column="created_at", operator="lt", values=(AT + 9,)),
                Condition(column="task_id", operator="prefix", values=("t-a",), negated=True),
            )
            for states in (None, ("working",), ("failed", "working")):
                for service in (None, "\ue000x"):
                    where = TaskFilter(conditions=conditions, states=states, service=service)
                    expected = [
                        row.task_id
                        for row in reversed(rows)
                        if all(_model(row, condition) for condition in conditions)
                        and (states is None or row.state in states)
                        and service in (None, row.service)
                    ]
                    assert await all_tasks(store, where, limit=2) == expected
                    assert await store.count_matching(where) == len(expected)

    async def test_tasks_of_which_something_was_given_up(self) -> None:
        rows = _rows()
        sent_again, waiting, both = rows[0].task_id, rows[1].task_id, rows[2].task_id
        letters = [(f"{waiting}:1", waiting), (f"{sent_again}:1", sent_again), (f"{both}:1", both), (f"{both}:2", both)]
        async with self.opened() as store:
            await self._record(store, rows)
            dead = tuple(DeadLetterRow(step, task, "s", 1, AT, "LD502", "no") for step, task in letters)
            await record_all(store, [{"dead": (letter,), "shard_key": letter.task_id} for letter in dead])
            for step in (f"{sent_again}:1", f"{both}:1"):
                assert await store.mark_redriven(step, "t-new")
            all_of_them = [row.task_id for row in rows]
            others = [task_id for task_id in all_of_them if task_id not in (waiting, both)]
            for values, negated, expected in [
                ((1,), False, [waiting, both]),
                ((1.0,), False, [waiting, both]),
                ((0,), False, others),
                ((1,), True, others),
                ((0, 1), False, all_of_them),
                ((), False, []),
                ((2,), True, all_of_them),
            ]:
                condition = Condition(column="dead", values=values, negated=negated)
                where = TaskFilter(conditions=(condition,), oldest_first=True)
                assert await all_tasks(store, where, limit=2) == expected, condition
                assert await store.count_matching(where) == len(expected), condition
            where = TaskFilter(states=("failed", "working"), conditions=(Condition(column="dead", values=(1,)),))
            assert await all_tasks(store, where) == [both]

    async def _record(self, store: StateStore, rows: list[TaskRow]) -> None:
        await record_all(store, [{"task": row, "entry": entry_row(row.task_id)} for row in rows])

    async def test_counting_everything(self) -> None:
        async with self.opened() as store:
            assert await store.count_matching(TaskFilter()) == 0
            await self._record(store, _rows())
            assert await store.count_matching(TaskFilter()) == 11
            assert await store.count_ended() == 4

    async def test_a_condition_that_makes_no_sense_is_refused(self) -> None:
        bad: list[dict[str, Any]] = [
            {"column": "number", "values": (1,)},
            {"column": "state; DROP TABLE tasks", "values": ("x",)},
            {"column": "state", "operator": "like", "values": ("x",)},
            {"column": "dead", "operator": "gt", "values": (0,)},
            {"column": "dead", "operator": "prefix", "values": ("1",)},
            {"column": "state", "values": (1,)},
            {"column": "state", "values": (None,)},
            {"column": "state", "values": ("\ud800",)},
            {"column": "steps", "values": ("1",)},
            {"column": "steps", "values": (True,)},
            {"column": "created_at", "values": (float("nan"),)},
            {"column": "created_at", "operator": "prefix", "values": (1,)},
            {"column": "created_at", "operator": "lt", "values": ()},
            {"column": "created_at", "operator": "lt", "values": (1, 2)},
            {"column": "service", "values": ("x",) * 100_000},
        ]
        async with self.opened() as store:
            filters = [TaskFilter(conditions=(Condition(**values),)) for values in bad]
            filters.append(TaskFilter(conditions=(Condition(column="paused", values=(0,)),) * 1_000))
            for where in filters:
                for ask in (store.count_matching(where), store.list_tasks(where, limit=1)):
                    try:
                        await ask
                    except InvalidRequestError:
                        continue
                    raise AssertionError(f"{str(where)[:200]} was accepted")
