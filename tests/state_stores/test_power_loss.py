"""A loss of power at every write of the SQLite store: what was settled is there, and nothing is there by half."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.state_stores.disk_log import Create, Delete, Event, Mark, Sync, Truncate, Write, recording
from tests.state_stores.power_loss import SECTOR, Disk, losses
from tests.support import eventually

from llama_deploy import Client, Deployment, HumanService, ServiceContext, service
from llama_deploy.state_stores import SQLiteStore
from llama_deploy.state_stores.base import SessionRow, SharedWrite
from llama_deploy.state_stores.sqlite_file import lock, open_connection
from llama_deploy.testing.recording import chunk, completion, delivery, entry_row, move, record, submission, task_row
from llama_deploy.types import RetryPolicy

NAME = "store.db"


def dump(connection: sqlite3.Connection) -> str:
    """Everything in a database, as text."""
    return "\n".join(connection.iterdump())


class Told:
    """A store whose every commit is noted: that it began, its content, that somebody was told."""

    def __init__(self, store: SQLiteStore, log: list[Event]) -> None:
        self.store = store
        self.log = log
        self.contents = [self._content()]

    def _content(self) -> str:
        with sqlite3.connect(f"{self.store.path.as_uri()}?mode=ro", uri=True) as connection:
            found = dump(connection)
        connection.close()
        return found

    async def record(self, **changes: object) -> None:
        """Record one transition, and mark that it is settled."""
        await record(self.store, **changes)
        self.log.append(Mark("settled"))
        self.contents.append(self._content())


async def work(told: Told, chance: random.Random) -> None:
    """Tasks that come, stream, share state, fail, are retried and end."""
    big = b"[" + b"1," * 3000 + b"1]"
    for number in range(12):
        task_id = f"t{number}"
        shared_write = SharedWrite("s", "key", number, str(number).encode())
        await told.record(
            **submission(task_id, shared=[shared_write], session=SessionRow("s", 1.0), idempotency=(task_id, "d"))
        )
        sent = [delivery(task_id, 2, seq=2, index=0), delivery(task_id, 3, seq=2, index=1)]
        await told.record(
            task=task_row(task_id, 2, state="working", steps=3),
            expected_version=1,
            entry=entry_row(task_id, 2, data=big if chance.random() < 0.3 else b"{}"),
            answered=[f"{task_id}:1"],
            sent=sent,
        )
        await told.record(chunks=[chunk(task_id, 0, 3, step_id=f"{task_id}:2", data=big)])
        await told.record(moved=[move(f"{task_id}:2")])
        if number % 3:
            steps = [f"{task_id}:2", f"{task_id}:3"]
            await told.record(**completion(task_id, 3, answered=steps))


async def a_run(folder: Path, seed: int, synchronous: str = "FULL") -> tuple[list[Event], list[str]]:
    """Two lives of a store: what happened to its files, and its content after the opening and after each commit."""
    contents: list[str] = []
    with recording(folder) as log:
        for life in range(2):  # the second begins with the files that the first has closed
            store = SQLiteStore(folder / NAME, synchronous=synchronous)
            await store.open()
            store._connection.execute("PRAGMA wal_autocheckpoint = 60")  # several checkpoints, and a log begun anew
            told = Told(store, log)
            if life == 0:
                await work(told, random.Random(seed))
            else:
                await told.record(**submission("again"))
            contents += told.contents if life == 0 else told.contents[1:]
            await store.close()
    assert {type(event) for event in log} == {Write, Truncate, Sync, Create, Delete, Mark}
    assert sum(isinstance(event, Sync) and event.file == NAME for event in log) > 3, "there were checkpoints"
    return log, contents


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
async def test_what_was_settled_survives_and_nothing_is_there_by_half(seed: int, tmp_path: Path) -> None:
    """After each loss the content is exactly that of one commit: the last that was settled, or the one after it."""
    log, contents = await a_run(tmp_path, seed)
    count = 0
    for loss in losses(log, seed=seed):
        count += 1
        settled = len(loss.marks)
        found = await reopened(loss.lay_out, tmp_path / "after")
        assert found in contents[settled : settled + 2], (
            f"seed {seed}, event {loss.at} of {len(log)}: not the content of commit {settled} or the one after, "
            f"but of {contents.index(found) if found in contents else 'none'}"
        )
    assert count > 1000


@pytest.mark.slow
async def test_with_less_care_the_newest_commits_are_taken_back_and_still_none_by_half(tmp_path: Path) -> None:
    """`synchronous=NORMAL` is what the page says it is; and this shows that a loss of settled commits is noticed."""
    log, contents = await a_run(tmp_path, 1, synchronous="NORMAL")
    taken_back = 0
    for loss in losses(log, seed=1, samples=1):
        found = contents.index(await reopened(loss.lay_out, tmp_path / "after"))
        assert found <= len(loss.marks) + 1
        taken_back += found < len(loss.marks)
    assert taken_back > 10


async def reopened(lay_out: Callable[[Path], None], folder: Path) -> str:
    """Open what is left with today's store; its content."""
    lay_out(folder)
    try:
        store = SQLiteStore(folder / NAME)
        await store.open()
        try:
            assert store._connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert store._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
            return dump(store._connection)
        finally:
            await store.close()
    finally:
        shutil.rmtree(folder)


def test_a_new_store_is_found_after_a_loss_of_power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite syncs the content of a new database and leaves its name to whoever made the file."""
    synced: list[Path] = []
    fsync = os.fsync

    def noting(descriptor: int) -> None:
        synced.append(
            next(p for p in (tmp_path, *tmp_path.rglob("*")) if os.path.samestat(p.stat(), os.fstat(descriptor)))
        )
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    path = tmp_path / "new" / "folder" / NAME
    os.close(lock(path))
    open_connection(path, "FULL").close()
    assert synced == [tmp_path, tmp_path / "new", tmp_path / "new" / "folder"]
    open_connection(path, "FULL").close()
    assert len(synced) == 3, "a file that was there needs nothing"


# --- the model itself -------------------------------------------------------------------------------------------------


def left_after(*events: Event) -> set[bytes | None]:
    """What may be found of the file `f` after these events."""
    disk = Disk()
    for event in events:
        disk.happen(event)
    return {state.get("f") for seed in range(40) for state in disk.states(random.Random(seed), samples=4)}


def test_what_is_synced_is_there_and_what_is_not_may_be() -> None:
    a, b = b"a" * SECTOR, b"b" * SECTOR
    made = (Create("f"), Write("f", 0, a), Sync("f"))
    assert left_after(*made) == {a}
    assert left_after(*made, Write("f", SECTOR, b)) == {a, a + b}
    assert left_after(*made, Write("f", 0, b + b)) == {a, b, b + b, a + b}
    assert left_after(*made, Write("f", SECTOR, b + a)) == {a, a + b, a + b + a, a + bytes(SECTOR) + a}
    assert left_after(*made, Write("f", 0, b), Write("f", 0, b"c" * SECTOR)) == {a, b, b"c" * SECTOR}
    assert left_after(*made, Truncate("f", 0)) == {a, b""}
    assert left_after(*made, Truncate("f", 0), Write("f", 0, b)) == {a, b, b""}
    assert left_after(*made, Truncate("f", 0), Sync("f")) == {b""}


def test_a_name_is_settled_by_a_sync() -> None:
    assert left_after(Create("f"), Write("f", 0, b"a")) == {None, b"", b"a"}
    made = (Create("f"), Write("f", 0, b"a"), Sync("f"))
    assert left_after(*made, Delete("f", synced=True)) == {None}
    assert left_after(*made, Delete("f", synced=False)) == {None, b"a"}
    again = (*made, Delete("f", synced=False), Create("f"))
    assert left_after(*again) == {None, b"", b"a"} - {None}
    assert left_after(*again, Sync("f")) == {b""}
    assert left_after(*made, Delete("f", synced=False), Create("f-wal"), Sync("f-wal")) == {None}


# --- what is said to clients and instances ----------------------------------------------------------------------------


@service(concurrency=8, retry=RetryPolicy(initial_s=0.001, cap_s=0.001))
async def tell(context: ServiceContext, number: int) -> int:
    """Streams, fails once where the number is even, and answers."""
    context.stream({"attempt": context.attempt, "number": number})
    if number % 2 == 0 and context.attempt == 1:
        raise RuntimeError("not yet")
    return number


async def use(deployment: Deployment, log: list[Event]) -> None:
    """A client's work; each thing that it is told is a mark."""
    client = deployment.client
    await client.create_session("s")
    log.append(Mark("session s"))

    async def one(number: int) -> None:
        task_id = f"t{number}"
        await client.submit("tell", number=number, task_id=task_id, session_id="s", idempotency_key=f"key {number}")
        log.append(Mark(f"accepted {task_id}"))
        async for event in client.stream(task_id):
            log.append(Mark(f"event {task_id} {event.index}"))  # noqa: PERF401 - as soon as it is told
        result = await client.wait(task_id)
        log.append(Mark(f"ended {task_id} {result.status}"))

    async def ask(number: int) -> None:
        task_id = f"p{number}"
        await client.submit("person", input="?", task_id=task_id)
        log.append(Mark(f"accepted {task_id}"))
        await eventually(lambda: _asks(client, task_id))
        log.append(Mark(f"asking {task_id}"))
        if number % 2:
            await client.send_input(task_id, "yes")
            log.append(Mark(f"input {task_id}"))
            await client.wait(task_id)
            log.append(Mark(f"ended {task_id} completed"))

    await asyncio.gather(*(one(number) for number in range(10)), *(ask(number) for number in range(4)))


async def _asks(client: Client, task_id: str) -> bool:
    return (await client.get_task(task_id)).state.value == "input_required"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
async def test_what_was_said_to_anybody_survives(seed: int, tmp_path: Path) -> None:
    """A control plane, its service and a client: after each loss, everything that the client was told is recorded."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with recording(folder) as log:
        store = SQLiteStore(folder / NAME)
        async with Deployment([tell, HumanService("person")], store=store, quiet=True) as deployment:
            store._connection.execute("PRAGMA wal_autocheckpoint = 40")
            await use(deployment, log)
    assert sum(isinstance(event, Mark) for event in log) > 50
    count = 0
    for loss in losses(log, seed=seed, samples=1):
        count += 1
        loss.lay_out(tmp_path / "after")
        after = SQLiteStore(tmp_path / "after" / NAME)
        await after.open()
        for mark in loss.marks:
            assert_recorded(after._connection, mark)
        assert_whole(after._connection)
        await after.close()
        shutil.rmtree(tmp_path / "after")
    assert count > 300


def assert_recorded(connection: sqlite3.Connection, mark: str) -> None:
    """What a mark says is in the store."""
    what, subject, *rest = mark.split()

    def one(statement: str, *parameters: object) -> object:
        row = connection.execute(statement, (subject, *parameters)).fetchone()
        return row[0] if row is not None else None

    if what == "session":
        assert one("SELECT 1 FROM sessions WHERE session_id = ?"), mark
    elif what == "accepted":
        assert one("SELECT 1 FROM tasks WHERE task_id = ?"), mark
        assert subject[0] != "t" or one("SELECT 1 FROM idempotency WHERE task_id = ?"), mark
    elif what == "event":
        statement = "SELECT 1 FROM stream_chunks WHERE task_id = ?1 AND first <= ?2 AND first + count > ?2"
        assert one(statement, int(rest[0])), mark
    elif what == "asking":
        assert one("SELECT 1 FROM history WHERE task_id = ? AND kind = 'input_requested'"), mark
    elif what == "input":
        assert one("SELECT 1 FROM history WHERE task_id = ? AND kind = 'answered'"), mark
    else:
        assert what == "ended"
        assert one("SELECT state FROM tasks WHERE task_id = ? AND ended_at IS NOT NULL") == rest[0], mark


def assert_whole(connection: sqlite3.Connection) -> None:
    """No transition is there by half."""

    def none(statement: str) -> None:
        assert connection.execute(statement).fetchall() == [], statement

    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    none("""SELECT t.task_id FROM tasks t LEFT JOIN history h USING (task_id) GROUP BY t.task_id
            HAVING count(h.seq) <> t.version OR max(h.seq) <> t.version OR min(h.seq) <> 1""")
    none("SELECT task_id FROM history WHERE task_id NOT IN (SELECT task_id FROM tasks)")
    none("SELECT step_id FROM deliveries WHERE task_id NOT IN (SELECT task_id FROM tasks)")
    none("""SELECT d.step_id FROM deliveries d LEFT JOIN history h ON h.task_id = d.task_id AND h.seq = d.seq
            WHERE json_extract(h.data, '$.messages[' || d.position || '].step_id') IS NOT d.step_id""")
    none("SELECT d.step_id FROM deliveries d JOIN tasks t USING (task_id) WHERE t.ended_at IS NOT NULL")
    none("""SELECT t.task_id FROM tasks t WHERE t.ended_at IS NULL
            AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.task_id = t.task_id)""")
    none("""SELECT task_id, first FROM (SELECT task_id, first,
            lag(first + count, 1, 0) OVER (PARTITION BY task_id ORDER BY first) AS wanted FROM stream_chunks)
            WHERE first <> wanted""")
    none("SELECT key FROM idempotency WHERE task_id NOT IN (SELECT task_id FROM tasks)")
