"""The SQLite store: the conformance suite, commits counted, what it refuses to open, and what a crash leaves."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support import PROCESS_S

from llama_deploy.errors import CommitConflictError, StoreLockedError, StoreReadOnlyError, StoreVersionError
from llama_deploy.runtime.failpoints import EXIT_CODE
from llama_deploy.state_stores import SQLiteStore, StateStore
from llama_deploy.state_stores.base import TaskFilter
from llama_deploy.testing import StoreConformance
from llama_deploy.testing.recording import (
    chunk,
    completion,
    delivery,
    entry_row,
    hand_over,
    record,
    submission,
    task_row,
)

HERE = Path(__file__).parent
NOBODY = 65534
"""The user without rights."""


class TestConformance(StoreConformance):
    @pytest.fixture(autouse=True)
    def _one_file(self, tmp_path: Path) -> None:
        self.path = tmp_path / "store.db"

    def make_store(self) -> StateStore:
        return SQLiteStore(self.path)


# --- commits ----------------------------------------------------------------------------------------------------------


async def test_what_is_handed_over_together_is_one_commit(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "store.db")
    await store.open()
    before = store.statistics.commits
    await asyncio.gather(*[hand_over(store, **submission(f"t{number}")) for number in range(100)])
    assert store.statistics.commits - before == 1
    await asyncio.gather(*[hand_over(store, **completion(f"t{number}")) for number in range(100)])
    assert store.statistics.commits - before == 2
    assert store.statistics.transitions == 200
    await store.close()


async def test_a_batch_takes_one_statement_per_kind_of_row(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "store.db")
    await store.open()
    before = store.statistics.statements
    await asyncio.gather(*[hand_over(store, **submission(f"t{number}")) for number in range(100)])
    assert store.statistics.statements - before == 3
    await store.close()


async def test_a_batch_with_a_refused_transition_is_still_one_commit(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "store.db")
    await store.open()
    before = store.statistics.commits
    numbers = [*range(50), 25, *range(50, 99)]
    outcomes = await asyncio.gather(*[hand_over(store, **submission(f"t{number}")) for number in numbers])
    assert [isinstance(outcome, CommitConflictError) for outcome in outcomes] == [n == 50 for n in range(100)]
    assert store.statistics.commits - before == 1
    await store.close()


# --- opening ----------------------------------------------------------------------------------------------------------


def _run(program: str, *arguments: str, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, str(HERE / program), *arguments]
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options
    )


def _answer(program: str, *arguments: str, **options: object) -> str:
    """What the program says; it ends by itself or by the end of its input."""
    with _run(program, *arguments, **options) as process:
        said, _ = process.communicate("\n", timeout=PROCESS_S)
    return said


async def test_a_second_open_of_the_same_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = SQLiteStore(path)
    await store.open()
    with pytest.raises(StoreLockedError, match=str(os.getpid())):
        await SQLiteStore(path).open()
    assert _answer("open_store.py", str(path)).startswith(StoreLockedError.code)
    await record(store, **submission("t"))
    await store.close()
    assert _answer("open_store.py", str(path)) == "open\n"


async def test_the_lock_ends_with_the_process_that_has_it(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with _run("open_store.py", str(path)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        with pytest.raises(StoreLockedError, match=str(process.pid)):
            await SQLiteStore(path).open()
        process.kill()
    store = SQLiteStore(path)
    await store.open()
    await store.close()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach, which `tmp_path` is not."""
    folder = Path(tempfile.mkdtemp(prefix="llama-deploy-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@contextmanager
def file_permissions_apply() -> Iterator[None]:
    """Permissions mean nothing to root: be nobody for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


async def _make_store(path: Path) -> None:
    store = SQLiteStore(path)
    await store.open()
    await record(store, **submission("t"))
    await store.close()


def _set_modes(folder: Path, *, folder_mode: int, file_mode: int) -> None:
    for item in folder.iterdir():
        item.chmod(file_mode)
    folder.chmod(folder_mode)


def _contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but the lock."""
    return {item.name: item.read_bytes() for item in folder.iterdir() if item.suffix != ".lock"}


async def _is_refused_read_only(path: Path) -> None:
    with file_permissions_apply(), pytest.raises(StoreReadOnlyError, match=str(path)):
        await SQLiteStore(path).open()


async def test_a_file_that_cannot_be_written_is_refused_untouched(open_folder: Path) -> None:
    path = open_folder / "store.db"
    await _make_store(path)
    _set_modes(open_folder, folder_mode=0o777, file_mode=0o444)
    (open_folder / "store.db.lock").chmod(0o666)
    before = _contents(open_folder)
    await _is_refused_read_only(path)
    assert _contents(open_folder) == before


async def test_a_folder_that_cannot_be_written_is_refused(open_folder: Path) -> None:
    path = open_folder / "store.db"
    await _make_store(path)
    _set_modes(open_folder, folder_mode=0o555, file_mode=0o666)
    before = _contents(open_folder)
    await _is_refused_read_only(path)
    await _is_refused_read_only(open_folder / "new.db")
    await _is_refused_read_only(open_folder / "new folder" / "new.db")
    assert _contents(open_folder) == before


async def test_a_path_that_no_file_can_have_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "store.db", tmp_path / "folder"):
        with pytest.raises(StoreReadOnlyError, match=str(path)):
            await SQLiteStore(path).open()


async def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    await _make_store(tmp_path / "a" / "b" / "store.db")
    assert (tmp_path / "a" / "b" / "store.db").exists()


async def _is_refused_untouched(path: Path) -> None:
    before = _contents(path.parent)
    with pytest.raises(StoreVersionError, match=path.name):
        await SQLiteStore(path).open()
    assert _contents(path.parent) == before


async def test_a_file_that_is_no_database_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("certainly not a database\n" * 500)
    await _is_refused_untouched(path)


async def test_a_short_file_that_is_no_database_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("short")
    await _is_refused_untouched(path)


async def test_another_programs_database_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE tasks (task_id TEXT)")
    connection.close()
    await _is_refused_untouched(path)


async def test_a_store_of_a_later_version_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    await _make_store(path)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 9999")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    await _is_refused_untouched(path)


async def test_what_was_refused_is_not_left_locked(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_text("certainly not a database\n" * 500)
    with pytest.raises(StoreVersionError):
        await SQLiteStore(path).open()
    path.unlink()
    await _make_store(path)


async def test_the_file_takes_settings_that_last(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    await _make_store(path)
    connection = sqlite3.connect(path)
    found = {name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "auto_vacuum")}
    connection.close()
    assert found == {"journal_mode": "wal", "auto_vacuum": 2}


# --- crashes ----------------------------------------------------------------------------------------------------------


async def _check_whole(path: Path, said: list[str]) -> None:
    """Everything that was settled is there, and nothing is there by halves."""
    store = SQLiteStore(path)
    await store.open()
    completed = {line.split()[1] for line in said if line.startswith("completed ")}
    submitted = {line.split()[1] for line in said if line.startswith("submitted ")}
    rows = {row.task_id: row for row in (await store.list_tasks(TaskFilter(), limit=1_000_000)).rows}
    assert submitted <= rows.keys()
    assert completed <= {row.task_id for row in rows.values() if row.state == "completed"}
    assert [row.task_id for row in sorted(rows.values(), key=lambda row: int(row.task_id[1:]))] == [
        f"t{number}" for number in range(1, len(rows) + 1)
    ], "a later transition is there without an earlier one"
    for task_id, row in rows.items():
        ended = row.state == "completed"
        assert row == task_row(task_id, 2 if ended else 1, state=row.state)
        assert await store.load_history(task_id) == [entry_row(task_id, seq) for seq in range(1, row.version + 1)]
        assert await store.load_deliveries(task_id) == ([] if ended else [delivery(task_id)])
        assert await store.load_chunks(task_id) == [chunk(task_id, 0, 2)]
    [last] = await store.load_shared("room")
    assert (last.version, last.value) == (len(rows), str(len(rows)).encode())
    await record(store, **submission("afterwards"))
    await store.close()


def _lines(output: str) -> list[str]:
    """The lines that were written to the end."""
    return output.split("\n")[:-1]


@pytest.mark.parametrize("settled", [1, 40, 400])
async def test_a_killed_process_leaves_everything_that_was_settled(tmp_path: Path, settled: int) -> None:
    path = tmp_path / "store.db"
    with _run("write_until_killed.py", str(path)) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(settled)]
        process.send_signal(signal.SIGKILL)
        said += process.stdout.readlines()
    assert process.returncode == -signal.SIGKILL
    await _check_whole(path, _lines("".join(said)))


@pytest.mark.parametrize("failpoint", ["store.before_commit:1", "store.before_commit:5", "store.after_commit:5"])
async def test_a_crash_around_a_commit_leaves_everything_that_was_settled(tmp_path: Path, failpoint: str) -> None:
    path = tmp_path / "store.db"
    with _run("write_until_killed.py", str(path), env={**os.environ, "LLAMA_DEPLOY_FAILPOINT": failpoint}) as process:
        output, _ = process.communicate(timeout=PROCESS_S)
    assert process.returncode == EXIT_CODE
    said = _lines(output)
    if failpoint.endswith(":1"):
        assert said == []
        store = SQLiteStore(path)
        await store.open()
        assert await store.count_tasks() == {}
        await store.close()
        return
    assert said
    await _check_whole(path, said)


async def test_after_the_commit_it_is_recorded_though_nobody_was_told(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    environment = {**os.environ, "LLAMA_DEPLOY_FAILPOINT": "store.after_commit:1"}
    with _run("write_until_killed.py", str(path), env=environment) as process:
        output, _ = process.communicate(timeout=PROCESS_S)
    assert (process.returncode, output) == (EXIT_CODE, "")
    store = SQLiteStore(path)
    await store.open()
    assert await store.load_task("t1") is not None
    await store.close()


async def test_a_canceled_write_disturbs_nobody(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "store.db")
    await store.open()
    writing = asyncio.ensure_future(store.put_service("a", b"{}"))
    await asyncio.sleep(0)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    await store.put_service("b", b"{}")
    assert set(await store.load_services()) == {"a", "b"}
    await store.close()


def _modes(folder: Path) -> set[int]:
    return {item.stat().st_mode & 0o777 for item in folder.iterdir()}


async def test_a_new_file_is_its_owners_alone(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "store.db")
    await store.open()
    await record(store, **submission("t"))
    assert _modes(tmp_path) <= {0o600}
    await store.close()


@pytest.mark.parametrize("seed", range(6))
async def test_of_what_is_erased_no_copy_stays_in_pages_that_rows_have_left(tmp_path: Path, seed: int) -> None:
    """Rows move between pages as these fill and empty, and nothing overwrites what they leave behind there."""
    path = tmp_path / "store.db"
    store = SQLiteStore(path, synchronous="NORMAL")
    await store.open()
    chance = random.Random(seed)
    left: list[str] = []
    for number in range(700):
        name = f"{chance.choice('aez')}-{number:05}"
        data = b"x" * chance.choice([50, 200, 600, 3_000, 5_000])
        if name[0] == "e":
            data = f"secret-{number:05} ".encode() * chance.randrange(3, 40)
            left.append(name)
        await store.import_task(task_row(name, state="completed"), [entry_row(name, data=data)], [])
        if len(left) > 20:
            await store.delete_tasks([left.pop(chance.randrange(len(left)))], erase=True)
    await store.delete_tasks(left, erase=True)
    assert await store.scrub()
    await store.close()
    assert b"secret-" not in path.read_bytes()
