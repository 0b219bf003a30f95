"""Store files of earlier versions: today's code opens them, shows everything and carries on with the unfinished."""

from __future__ import annotations

import asyncio
import gzip
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from tests.state_stores.files.earlier_system import Gate, Tally, services
from tests.support import DEADLINE_S

from llama_deploy import Deployment
from llama_deploy.errors import TaskFailed
from llama_deploy.state_stores import SQLiteStore, sqlite_file
from llama_deploy.state_stores.base import TaskFilter
from llama_deploy.testing.recording import dead, record, submission

FILES = Path(__file__).parent / "files"


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """The file that the first schema's version has left behind."""
    path = tmp_path / "store.db"
    path.write_bytes(gzip.decompress((FILES / "schema_1.db.gz").read_bytes()))
    return path


def _version(path: Path) -> int:
    connection = sqlite3.connect(path)
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    connection.close()
    return version


async def _everything_is_there(path: Path) -> None:
    store = SQLiteStore(path)
    await store.open()
    rows = (await store.list_tasks(TaskFilter(oldest_first=True), limit=100)).rows
    assert [(row.task_id, row.state) for row in rows] == [
        ("done", "completed"),
        ("failed", "failed"),
        ("streamed", "completed"),
        ("said-1", "completed"),
        ("said-2", "completed"),
        ("said-3", "working"),
        ("held", "working"),
        ("parked", "input_required"),
        ("asking", "working"),
    ]
    assert {(row.origin, row.paused, row.error) for row in rows} == {("", 0, "")}
    for row in rows:
        assert [entry.seq for entry in await store.load_history(row.task_id)] == list(range(1, row.version + 1))
    assert await store.count_tasks() == {"completed": 4, "failed": 1, "working": 3, "input_required": 1}
    assert await store.count_ended() == 5
    assert await store.load_stream_end("streamed") == (20, {"streamed:1": (1, 20)})
    assert [row.task_id for row in (await store.list_tasks(TaskFilter(session_id="room"), limit=9)).rows] == [
        "said-3",
        "said-2",
        "said-1",
    ]
    assert [(value.key, value.value) for value in await store.load_shared("room")] == [("said", b'["one","two"]')]
    found = await store.find_idempotent("once")
    assert found is not None
    assert found[0] == "done"
    assert len(await store.load_services()) == 6
    await store.close()


async def test_a_file_of_the_first_schema_is_opened_with_everything_in_it(earlier: Path) -> None:
    assert _version(earlier) == 1
    for _ in range(2):
        await _everything_is_there(earlier)
        assert _version(earlier) == len(sqlite_file.migrations())


async def test_what_the_second_schema_added_works_in_it(earlier: Path) -> None:
    store = SQLiteStore(earlier)
    await store.open()
    assert await store.ended_before(4e9, limit=10) == ["done", "failed", "streamed", "said-1", "said-2"]
    assert await store.delete_tasks(["done", "held"]) == 1
    assert (await store.count_tasks())["completed"] == 3
    assert await store.find_idempotent("once") is None
    await record(store, **submission("new"), dead=[dead("new", 2)])
    await store.put_document("limit", "echo", b"1")
    assert await store.count_matching(TaskFilter()) == 9
    await store.close()


async def test_unfinished_tasks_of_the_first_schema_reach_their_outcome(earlier: Path) -> None:
    async with (
        asyncio.timeout(DEADLINE_S),
        Deployment(services(Gate(is_open=True)), store=earlier, orchestrator=Tally(), quiet=True) as deployment,
    ):
        client = deployment.client
        assert await client.result("done") == "hello"
        assert await client.result("streamed") == 20
        assert [event.data["number"] async for event in client.stream("streamed")] == list(range(20))
        with pytest.raises(TaskFailed, match="ValueError: no"):
            await client.result("failed")
        assert await client.run("echo", input={"text": "hello"}, task_id="done", idempotency_key="once") == "hello"
        assert await client.result("held") == "kept"
        assert await client.result("said-3") == "three"
        assert await client.get_session_state("room") == {"said": ["one", "two", "three"]}
        assert (await client.get_task("parked")).state == "input_required"
        await client.send_input("parked", True)
        assert await client.result("parked") is True
        async for entry in client.history("asking", follow=True):
            if entry.kind == "input_requested" and entry.seq > 3:
                break
        await client.send_input("asking", 3)
        assert await client.result("asking") == "3 apples"


# --- killed in the middle ---------------------------------------------------------------------------------------------


def _open_and_die(path: Path, statement: int) -> bool:
    """In a process of its own: open the file and die before the n-th statement; false when it opened before that."""
    process = os.fork()
    if process == 0:
        _die_before(statement)
        sqlite_file.open_connection(path, "FULL")
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) != 0


def _die_before(statement: int) -> None:
    connect, seen = sqlite3.connect, 0

    def count(_: str) -> None:
        nonlocal seen
        seen += 1
        if seen == statement:
            os.kill(os.getpid(), 9)

    def connected(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*arguments, **options)
        connection.set_trace_callback(count)
        return connection

    sqlite_file.sqlite3.connect = connected  # type: ignore[attr-defined]


async def test_killed_in_the_middle_of_a_migration_the_file_has_the_old_schema_or_the_new_one(tmp_path: Path) -> None:
    content = gzip.decompress((FILES / "schema_1.db.gz").read_bytes())
    versions: list[int] = []
    for statement in range(1, 1_000):
        path = tmp_path / f"{statement}.db"
        path.write_bytes(content)
        if not _open_and_die(path, statement):
            break
        versions.append(_version(path))
        await _everything_is_there(path)
        assert _version(path) == len(sqlite_file.migrations())
        path.unlink()
    assert versions == sorted(versions), "it goes forward"
    assert set(versions) >= {1}
    assert len(versions) > 20, "died at every statement"
