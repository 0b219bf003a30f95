"""The part of the store suite about copies: a backup is one file with everything, which `SQLiteStore` opens.

A third party's store runs it through `StoreConformance`, not by itself.
"""

# ruff: noqa: PLR2004 - the numbers in a test are its facts

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from llama_deploy.errors import StoreUnavailableError
from llama_deploy.state_stores import SQLiteStore, StateStore
from llama_deploy.state_stores.base import (
    BLOB_PART_BYTES,
    SessionRow,
    SharedValue,
    SharedWrite,
    TaskFilter,
    Transition,
)
from llama_deploy.testing.recording import (
    AT,
    Outcome,
    StoreSuite,
    chunk,
    completion,
    dead,
    delivery,
    entry_row,
    record,
    submission,
    task_row,
)


def _names(folder: str) -> list[str]:
    return [found.name for found in Path(folder).iterdir()]


class BackupConformance(StoreSuite):
    """What `backup` promises."""

    def open_backup(self, path: Path) -> StateStore:
        """Make a store over a backup; not open yet."""
        return SQLiteStore(path)

    async def test_a_backup_has_everything(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "copy.db"
            async with self.opened() as store:
                await self._fill(store)
                await store.backup(path)
                await record(store, **submission("later"))
            assert _names(folder) == ["copy.db"], "one file, and nothing beside it"
            copy = self.open_backup(path)
            await copy.open()
            try:
                await self._check(copy)
            finally:
                await copy.close()

    async def _fill(self, store: StateStore) -> None:
        await record(store, **submission("gone"))
        await record(
            store,
            **submission("t", task=task_row("t", session_id="s"), idempotency=("key", "digest"), dead=[dead("t", 3)]),
            chunks=[chunk("t", 0, 2)],
            session=SessionRow("s", AT),
            shared=[SharedWrite("s", "k", 0, b"1"), SharedWrite("s", "removed", 0, b"2")],
            blobs={"aa": b"x" * (BLOB_PART_BYTES + 3)},
            blob_uses=["aa"],
        )
        await record(store, shared=[SharedWrite("s", "removed", 1, None)])
        await record(store, **submission("done"))
        await record(store, **completion("done"))
        await store.put_blob_part("bb", 0, bytes(BLOB_PART_BYTES), at=AT)
        await store.put_service("echo", b"{}")
        await store.put_document("limit", "echo", b"3")
        await store.delete_tasks(["gone"], erase=True)

    async def _check(self, copy: StateStore) -> None:
        assert await copy.load_task("t") == task_row("t", session_id="s")
        assert await copy.load_history("done") == [entry_row("done", 1), entry_row("done", 2)]
        assert await copy.load_deliveries("t") == [delivery("t")]
        assert await copy.load_chunks("t") == [chunk("t", 0, 2)]
        assert await copy.load_session("s") == SessionRow("s", AT)
        shared = await copy.load_shared("s")
        assert sorted(shared, key=lambda value: value.key) == [
            SharedValue("k", 1, b"1"),
            SharedValue("removed", 2, None),
        ]
        assert await copy.find_idempotent("key") == ("t", "digest")
        assert await copy.load_dead("t:3") == dead("t", 3)
        assert await copy.load_services() == {"echo": b"{}"}
        assert await copy.load_documents("limit") == {"echo": b"3"}
        assert await copy.load_blob("aa", first=BLOB_PART_BYTES - 1) == b"xxxx"
        await copy.put_blob_part("bb", 1, b"yy", at=AT)
        await copy.finish_blob("bb", BLOB_PART_BYTES + 2, AT)
        assert await copy.delete_unused_blobs(AT + 1, 10) == 1
        assert await copy.count_tasks() == {"submitted": 1, "completed": 1}
        assert [row.task_id for row in (await copy.list_tasks(TaskFilter(), limit=9)).rows] == ["done", "t"]

    async def test_a_backup_has_everything_that_was_settled_before_and_nothing_by_halves(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "copy.db"
            async with self.opened() as store:
                numbers = iter(range(1_000_000))
                settled: set[int] = set()
                enough = asyncio.Event()
                busy = True

                def again(number: int, outcome: Outcome) -> None:
                    assert outcome is None
                    settled.add(number)
                    if len(settled) == 100:
                        enough.set()
                    if busy:  # work that leaves room for others: the backup's thread needs the interpreter, too
                        asyncio.get_running_loop().call_later(0.001, hand_over_next)

                def hand_over_next() -> None:
                    if not busy:
                        return
                    number = next(numbers)
                    shared = [SharedWrite("s", "last", number, str(number).encode())]
                    changes = submission(f"t{number}", chunks=[chunk(f"t{number}", 0)], shared=shared)
                    store.record(Transition(settled=lambda outcome: again(number, outcome), **changes))

                for _ in range(8):
                    hand_over_next()
                await enough.wait()
                before = set(settled)
                await store.backup(path)
                busy = False
            copy = self.open_backup(path)
            await copy.open()
            try:
                rows = (await copy.list_tasks(TaskFilter(oldest_first=True), limit=1_000_000)).rows
                assert [row.task_id for row in rows] == [f"t{number}" for number in range(len(rows))]
                assert len(before) <= len(rows) <= len(settled)
                for row in (rows[0], rows[-1]):
                    assert await copy.load_history(row.task_id) == [entry_row(row.task_id)]
                    assert await copy.load_deliveries(row.task_id) == [delivery(row.task_id)]
                    assert await copy.load_chunks(row.task_id) == [chunk(row.task_id, 0)]
                [last] = await copy.load_shared("s")
                assert (last.version, last.value) == (len(rows), str(len(rows) - 1).encode())
            finally:
                await copy.close()

    async def test_a_backup_takes_no_others_place(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            taken = Path(folder) / "taken"
            taken.write_text("here")
            async with self.opened() as store:
                await record(store, **submission("t"))
                for path in (taken, Path(folder) / "missing" / "copy.db"):
                    try:
                        await store.backup(path)
                    except StoreUnavailableError:
                        continue
                    raise AssertionError(f"{path} was written")
            assert taken.read_text() == "here"
            assert _names(folder) == ["taken"]
