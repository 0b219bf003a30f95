"""Backups of a SQLite store: checked, put in the place of a store in one step, and refused where that is wrong."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support import DEADLINE_S, eventually

from llama_deploy import Deployment
from llama_deploy.errors import BackupError, StoreExistsError, StoreLockedError, StoreUnavailableError
from llama_deploy.services import service
from llama_deploy.state_stores import SQLiteStore, StateStore, backups
from llama_deploy.state_stores.base import TaskFilter
from llama_deploy.testing.recording import entry_row, record, submission


async def _store(path: Path, *task_ids: str) -> SQLiteStore:
    store = SQLiteStore(path)
    await store.open()
    for task_id in task_ids:
        await record(store, **submission(task_id))
    return store


async def _make(path: Path, *task_ids: str) -> Path:
    """A store that is closed, with these tasks."""
    await (await _store(path, *task_ids)).close()
    return path


async def _tasks(path: Path) -> list[str]:
    store = SQLiteStore(path)
    await store.open()
    rows = (await store.list_tasks(TaskFilter(oldest_first=True), limit=100)).rows
    await store.close()
    return [row.task_id for row in rows]


def _hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.glob(".*")]


def _killed_with_a_full_log(store: Path) -> None:
    """A process that changes something and dies before it is taken from the log into the file."""
    process = os.fork()
    if process == 0:
        connection = sqlite3.connect(store, isolation_level=None)
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("UPDATE tasks SET task_id = 'in the log'")
        os._exit(0)
    os.waitpid(process, 0)


async def _backup(folder: Path, *task_ids: str) -> Path:
    store = await _store(folder / "source.db", *task_ids)
    await store.backup(folder / "backup.db")
    await store.close()
    return folder / "backup.db"


async def test_a_backup_is_put_where_there_was_no_store(tmp_path: Path) -> None:
    backup = await _backup(tmp_path, "a", "b")
    facts = backups.restore(backup, tmp_path / "new" / "store.db")
    assert (facts.tasks, facts.unfinished, facts.bytes) == (2, 2, backup.stat().st_size)
    assert await _tasks(tmp_path / "new" / "store.db") == ["a", "b"]
    assert (tmp_path / "new" / "store.db").stat().st_mode & 0o777 == 0o600


async def test_a_store_is_replaced_only_when_that_is_asked_for(tmp_path: Path) -> None:
    backup = await _backup(tmp_path, "a")
    store = await _make(tmp_path / "store.db", "old")
    with pytest.raises(StoreExistsError):
        backups.restore(backup, store)
    assert await _tasks(store) == ["old"]
    backups.restore(backup, store, replace=True)
    assert await _tasks(store) == ["a"]


async def test_a_store_in_use_is_not_replaced(tmp_path: Path) -> None:
    backup = await _backup(tmp_path, "a")
    store = await _store(tmp_path / "store.db", "old")
    with pytest.raises(StoreLockedError):
        backups.restore(backup, tmp_path / "store.db", replace=True)
    await record(store, **submission("goes on"))
    await store.close()
    assert await _tasks(tmp_path / "store.db") == ["old", "goes on"]


async def test_the_log_of_a_replaced_store_is_not_applied_to_the_new_one(tmp_path: Path) -> None:
    """A control plane that was killed leaves its newest commits in the log."""
    backup = await _backup(tmp_path, "a")
    store = await _make(tmp_path / "store.db", "old")
    _killed_with_a_full_log(store)
    assert (tmp_path / "store.db-wal").stat().st_size > 0
    backups.restore(backup, store, replace=True)
    assert not (tmp_path / "store.db-wal").exists()
    assert await _tasks(store) == ["a"]


async def test_a_damaged_store_can_be_replaced(tmp_path: Path) -> None:
    backup = await _backup(tmp_path, "a")
    store = await _make(tmp_path / "store.db", "old")
    store.write_bytes(b"x" * 20_000)
    (tmp_path / "store.db-wal").write_bytes(b"y" * 20_000)
    backups.restore(backup, store, replace=True)
    assert await _tasks(store) == ["a"]


async def test_what_is_no_backup_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    good = await _backup(tmp_path, *[f"t{number}" for number in range(50)])
    text = tmp_path / "text"
    text.write_text("certainly not a database\n" * 500)
    cut = tmp_path / "cut.db"
    cut.write_bytes(good.read_bytes()[:-8192])
    flipped = tmp_path / "flipped.db"
    content = bytearray(good.read_bytes())
    content[5 * 4096 : 6 * 4096] = bytes(4096)
    flipped.write_bytes(content)
    theirs = tmp_path / "theirs.db"
    later = tmp_path / "later.db"
    later.write_bytes(good.read_bytes())
    for path, change in ((theirs, "CREATE TABLE tasks (task_id TEXT)"), (later, "PRAGMA user_version = 9999")):
        connection = sqlite3.connect(path)
        connection.execute(change)
        connection.commit()
        connection.close()
    empty = tmp_path / "empty"
    empty.touch()
    store = await _make(tmp_path / "store.db", "old")
    for bad in (text, cut, flipped, theirs, later, empty, tmp_path / "missing", tmp_path):
        with pytest.raises(BackupError):
            backups.restore(bad, store, replace=True)
    assert await _tasks(store) == ["old"]


async def test_a_store_in_use_is_no_backup(tmp_path: Path) -> None:
    store = await _store(tmp_path / "live.db", "a")
    with pytest.raises(BackupError, match="log beside it"):
        backups.restore(tmp_path / "live.db", tmp_path / "store.db")
    await store.close()
    backups.restore(tmp_path / "live.db", tmp_path / "store.db")
    assert await _tasks(tmp_path / "store.db") == ["a"]


async def test_a_disk_that_is_full_leaves_the_old_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backup = await _backup(tmp_path, "a")
    store = await _make(tmp_path / "store.db", "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llama_deploy.state_stores.backups.shutil.copyfileobj", full)
    with pytest.raises(StoreUnavailableError, match="No space left"):
        backups.restore(backup, store, replace=True)
    assert await _tasks(store) == ["old"]
    assert _hidden(tmp_path) == []


async def test_what_a_killed_restoration_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".store.db.abcd.unfinished"
    left.write_bytes(b"half of it")
    await _make(tmp_path / "store.db", "a")
    assert not left.exists()


async def test_closing_ends_a_backup_that_is_being_written(tmp_path: Path) -> None:
    store = await _store(tmp_path / "store.db")
    for number in range(30):
        name = f"t{number}"
        await record(store, **submission(name, entry=entry_row(name, data=bytes(1_000_000))))
    writing = asyncio.ensure_future(store.backup(tmp_path / "copy.db"))
    await asyncio.sleep(0)
    await store.close()
    [outcome] = await asyncio.gather(writing, return_exceptions=True)
    assert outcome is None or isinstance(outcome, StoreUnavailableError)
    assert (tmp_path / "copy.db").exists() == (outcome is None)
    assert _hidden(tmp_path) == []


@contextmanager
def _just_written() -> Iterator[None]:
    """What the block begins in a thread has ended after it, and the loop does not know yet."""
    threads = ThreadPoolExecutor(1)
    asyncio.get_running_loop().set_default_executor(threads)
    yield
    threads.shutdown()
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))


async def test_closing_meets_a_backup_that_has_just_been_written(tmp_path: Path) -> None:
    store = await _store(tmp_path / "store.db", "t")
    with _just_written():
        backup = asyncio.create_task(store.backup(tmp_path / "copy.db"))
        await asyncio.sleep(0)
    await store.close()
    await backup
    assert await _tasks(tmp_path / "copy.db") == await _tasks(tmp_path / "store.db") == ["t"]


async def test_who_gives_up_a_backup_that_has_just_been_written_is_canceled(tmp_path: Path) -> None:
    store = await _store(tmp_path / "store.db")
    with _just_written():
        backup = asyncio.create_task(store.backup(tmp_path / "copy.db"))
        await asyncio.sleep(0)
    backup.cancel()
    with pytest.raises(asyncio.CancelledError):
        await backup
    await store.close()


# --- with everything above it -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "memory"])
async def test_a_restored_deployment_carries_on(tmp_path: Path, kind: str) -> None:
    """Taken while tasks come and go: what was acknowledged is there, what was unfinished reaches its outcome."""
    gate = asyncio.Event()

    @service(concurrency=50)
    async def echo(text: str) -> str:
        return text

    @service(concurrency=50)
    async def hold(text: str) -> str:
        await gate.wait()
        return text

    place: str | Path | StateStore = ":memory:" if kind == "memory" else tmp_path / "first.db"
    async with Deployment([echo, hold], store=place, quiet=True, drain_timeout_s=0.0) as first:
        held = [await first.submit("hold", text=str(number)) for number in range(10)]
        done: list[str] = []
        busy = True

        async def keep_busy() -> None:
            while busy:
                task_id = await first.submit("echo", text="x")
                await first.client.result(task_id)
                done.append(task_id)

        load = [asyncio.ensure_future(keep_busy()) for _ in range(8)]
        await eventually(lambda: len(done) > 50)
        before = list(done)
        size = await first.client.backup(tmp_path / "backup.db")
        busy = False
        await asyncio.gather(*load)
    assert size == (tmp_path / "backup.db").stat().st_size
    assert _hidden(tmp_path) == [], "nothing is left beside it"
    backups.restore(tmp_path / "backup.db", tmp_path / "second.db")
    gate.set()
    async with (
        asyncio.timeout(DEADLINE_S),
        Deployment([echo, hold], store=tmp_path / "second.db", quiet=True) as second,
    ):
        assert [await second.client.result(task_id) for task_id in held] == [str(number) for number in range(10)]
        assert {await second.client.result(task_id) for task_id in before} == {"x"}
        assert await second.run("echo", text="new") == "new"
