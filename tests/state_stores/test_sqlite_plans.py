"""How SQLite finds what lists, counts and retention ask for: by an index, however many tasks there are."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from llama_deploy.errors import CommitConflictError
from llama_deploy.state_stores import SQLiteStore
from llama_deploy.state_stores.base import Condition, TaskFilter
from llama_deploy.state_stores.sqlite_file import load_statements
from llama_deploy.state_stores.sqlite_reads import list_statement
from llama_deploy.testing.recording import entry_row, hand_over, record, record_all, submission

SELECTIVE: dict[str, Condition] = {
    "state": Condition(column="state", values=("working", "input_required")),
    "unhappy state": Condition(column="state", values=("failed",)),
    "origin": Condition(column="origin", values=("child:t",)),
    "origins": Condition(column="origin", values=("child:t", "fork:t")),
    "origin prefix": Condition(column="origin", operator="prefix", values=("child:t",)),
    "paused": Condition(column="paused", values=(1,)),
    "session": Condition(column="session_id", values=("s",)),
    "task": Condition(column="task_id", values=("t1", "t2")),
    "task prefix": Condition(column="task_id", operator="prefix", values=("t1",)),
}


async def _plan(path: Path, where: TaskFilter) -> str:
    connection = sqlite3.connect(path)
    sql, parameters = list_statement(where, 100, None)
    rows = connection.execute(f"EXPLAIN QUERY PLAN {sql}", parameters).fetchall()
    connection.close()
    return "; ".join(row[3] for row in rows)


@pytest.mark.parametrize("name", SELECTIVE)
@pytest.mark.parametrize("oldest_first", [False, True])
async def test_a_selective_condition_reads_an_index(tmp_path: Path, name: str, oldest_first: bool) -> None:
    store = SQLiteStore(tmp_path / "store.db")
    await store.open()
    await store.close()
    plan = await _plan(tmp_path / "store.db", TaskFilter(conditions=(SELECTIVE[name],), oldest_first=oldest_first))
    assert "INDEX" in plan, plan
    assert "SCAN tasks" not in plan or "tasks_paused" in plan, plan


@pytest.mark.parametrize("name", ["ended_tasks", "dead_before", "unused_sessions", "list_sessions", "due_deliveries"])
async def test_what_goes_in_order_is_read_in_order(tmp_path: Path, name: str) -> None:
    """So that a bounded look reads no more than it shows."""
    plan = await _plan_of(tmp_path, load_statements()[name])
    assert "TEMP B-TREE" not in plan, plan


@pytest.mark.parametrize("name", ["count_all", "count_ended", "count_unfinished", "count_unhappy"])
async def test_counting_reads_no_table(tmp_path: Path, name: str) -> None:
    plan = await _plan_of(tmp_path, load_statements()[name])
    assert all("INDEX" in step for step in plan.split("; ") if "SCAN tasks" in step), plan


async def _plan_of(tmp_path: Path, sql: str) -> str:
    store = SQLiteStore(tmp_path / "store.db")
    await store.open()
    await store.close()
    connection = sqlite3.connect(tmp_path / "store.db")
    rows = connection.execute(f"EXPLAIN QUERY PLAN {sql}", ["x"] * sql.count("?")).fetchall()
    connection.close()
    return "; ".join(row[3] for row in rows)


async def test_unused_space_is_given_back(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "store.db")
    await store.open()
    names = [f"t{number}" for number in range(40)]
    await record_all(store, [submission(name, entry=entry_row(name, data=bytes(1_000_000))) for name in names])
    assert not await store.shrink(), "there is nothing to give back"
    await store.delete_tasks(names[:35], erase=True)
    pieces = 0
    while await store.shrink():
        pieces += 1
    assert 10 < pieces < 60, "a small piece at a time"
    await store.close()
    assert (tmp_path / "store.db").stat().st_size < 15_000_000
    await store.open()
    assert await store.load_history("t39") == [entry_row("t39", data=bytes(1_000_000))]
    await store.close()


async def test_a_rare_write_that_cannot_be_stored_harms_nobody(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "store.db")
    await store.open()
    outcome = hand_over(store, **submission("t"))
    with pytest.raises(CommitConflictError):
        await store.delete_document("limit", "\ud800")
    assert await outcome is None
    await record(store, **submission("u"))
    assert store.healthy
    await store.close()
