"""The part of the store suite about what is kept beside tasks, and about removing: documents, dead letters, contents.

A third party's store runs it through `StoreConformance`, not by itself.
"""

# ruff: noqa: PLR2004 - the numbers in a test are its facts

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from hashlib import sha256

from llama_deploy.errors import CommitConflictError, InvalidRequestError, LlamaDeployError, StoreUnavailableError
from llama_deploy.state_stores.base import (
    BLOB_PART_BYTES,
    DeadLetterRow,
    SessionRow,
    SharedWrite,
    StateStore,
    TaskFilter,
)
from llama_deploy.testing.recording import (
    AT,
    StoreSuite,
    all_tasks,
    chunk,
    completion,
    dead,
    delivery,
    entry_row,
    hand_over,
    record,
    record_all,
    submission,
    task_row,
)


def _hash(data: bytes) -> str:
    return sha256(data).hexdigest()


async def _raises(kind: type[LlamaDeployError], asked: Awaitable[object]) -> None:
    try:
        await asked
    except kind:
        return
    raise AssertionError(f"{kind.__name__} was not raised")


async def _upload(store: StateStore, data: bytes, *, at: float = AT) -> str:
    """Send a content in parts; returns its hash."""
    for position, first in enumerate(range(0, len(data), BLOB_PART_BYTES)):
        await store.put_blob_part(_hash(data), position, data[first : first + BLOB_PART_BYTES], at=at)
    await store.finish_blob(_hash(data), len(data), at)
    return _hash(data)


async def _all_dead(store: StateStore, *, service: str | None = None, task_id: str | None = None) -> list[str]:
    found: list[str] = []
    cursor = None
    while True:
        page = await store.list_dead(service=service, task_id=task_id, limit=2, cursor=cursor)
        found += [row.step_id for row in page.rows]
        cursor = page.next
        if cursor is None:
            return found


class KeepingConformance(StoreSuite):
    """What the contract promises beside transitions and reads of tasks."""

    # --- documents ------------------------------------------------------------------------------------------------

    async def test_documents_are_kept_by_kind_and_name(self) -> None:
        async with self.opened() as store:
            assert await store.load_documents("limit") == {}
            await store.put_document("limit", "a", b"1")
            await store.put_document("limit", "b ü'", b"\0\xff")
            await store.put_document("schedule", "a", b"2")
            await store.put_document("limit", "a", b"3")
            assert await store.load_documents("limit") == {"a": b"3", "b ü'": b"\0\xff"}
            assert await store.delete_document("limit", "a")
            assert not await store.delete_document("limit", "a")
            assert await store.load_documents("limit") == {"b ü'": b"\0\xff"}
            assert await store.load_documents("schedule") == {"a": b"2"}

    async def test_a_name_that_cannot_be_stored_is_refused(self) -> None:
        async with self.opened() as store:
            await _raises(InvalidRequestError, store.put_document("limit", "\ud800", b"1"))
            await store.put_document("limit", "a", b"1")
            assert await store.load_documents("limit") == {"a": b"1"}

    # --- dead letters ---------------------------------------------------------------------------------------------

    async def test_dead_letters_are_listed_newest_first(self) -> None:
        async with self.opened() as store:
            services = {"t0": "a", "t1": "b", "t2": "a", "t3": "a", "t4": "b"}
            for task_id, service in services.items():
                await record(store, **submission(task_id), dead=[dead(task_id, service=service), dead(task_id, 2)])
            steps = [f"t{task}:{number}" for task in range(4, -1, -1) for number in (2, 1)]
            assert await _all_dead(store) == steps
            assert await _all_dead(store, service="a") == ["t3:1", "t2:1", "t0:1"]
            assert await _all_dead(store, task_id="t3") == ["t3:2", "t3:1"]
            assert await _all_dead(store, service="echo", task_id="t3") == ["t3:2"]
            assert await store.load_dead("t1:1") == dead("t1", service="b")
            assert await store.load_dead("t9:1") is None
            assert await store.count_dead() == {"a": 3, "b": 2, "echo": 5}
            await _raises(InvalidRequestError, store.list_dead(limit=1, cursor="x"))

    async def test_a_step_that_dies_again_is_one_letter_and_the_newest(self) -> None:
        async with self.opened() as store:
            await record(store, **submission("t"), dead=[dead("t", 1), dead("t", 2)])
            assert await store.mark_redriven("t:1", "other")
            again = DeadLetterRow("t:1", "t", "echo", 7, AT + 9, "LD999", "ü")
            await record(store, dead=[again])
            assert await _all_dead(store) == ["t:1", "t:2"]
            assert await store.load_dead("t:1") == again

    async def test_a_letter_is_sent_again_once(self) -> None:
        async with self.opened() as store:
            await record(store, **submission("t"), dead=[dead("t", 1), dead("t", 2)])
            told = await asyncio.gather(*[store.mark_redriven("t:1", f"other{number}") for number in range(3)])
            assert told == [True, False, False]
            assert not await store.mark_redriven("none:1", "other")
            assert await store.load_dead("t:1") == dead("t", 1, redriven="other0")
            assert await store.count_dead() == {"echo": 1}

    async def test_dead_letters_are_removed(self) -> None:
        async with self.opened() as store:
            await record(store, **submission("t"), dead=[dead("t", number, at=AT + number) for number in range(1, 6)])
            assert await store.dead_before(AT + 4, limit=2) == ["t:1", "t:2"]
            assert await store.dead_before(AT + 1, limit=2) == []
            assert await store.delete_dead(["t:1", "t:3", "none:1"]) == 2
            assert await store.delete_dead(["t:1", "t:3"]) == 0
            assert await store.delete_dead([]) == 0
            assert await _all_dead(store) == ["t:5", "t:4", "t:2"]

    # --- large contents -------------------------------------------------------------------------------------------

    async def test_a_content_is_there_once_it_is_finished(self) -> None:
        async with self.opened() as store:
            data = bytes(range(256)) * (BLOB_PART_BYTES // 100)  # two whole parts and a half
            hash_ = _hash(data)
            assert await store.blob_bytes(hash_) is None
            parts = [data[first : first + BLOB_PART_BYTES] for first in range(0, len(data), BLOB_PART_BYTES)]
            assert len(parts) == 3
            for position in (2, 0, 0):
                await store.put_blob_part(hash_, position, parts[position], at=AT)
            await _raises(InvalidRequestError, store.finish_blob(hash_, len(data), AT))
            assert await store.blob_bytes(hash_) is None
            await _raises(StoreUnavailableError, store.load_blob(hash_))
            await store.put_blob_part(hash_, 1, parts[1], at=AT)
            await store.put_blob_part(hash_, 7, b"of an upload that was wrong", at=AT)
            for _ in range(2):
                await store.finish_blob(hash_, len(data), AT)
            assert await store.blob_bytes(hash_) == len(data)
            assert await store.load_blob(hash_) == data
            await store.put_blob_part(hash_, 0, b"something else", at=AT)
            assert await store.load_blob(hash_) == data

    async def test_ranges_of_a_content(self) -> None:
        async with self.opened() as store:
            data = bytes(number % 251 for number in range(2 * BLOB_PART_BYTES))
            hash_ = await _upload(store, data)
            edges = [0, 1, BLOB_PART_BYTES - 1, BLOB_PART_BYTES, BLOB_PART_BYTES + 1, len(data) - 1, len(data), 10**9]
            for first in edges:
                assert await store.load_blob(hash_, first=first) == data[first:]
                for limit in (0, 1, 2, BLOB_PART_BYTES, 10**9):
                    found = await store.load_blob(hash_, first=first, limit=limit)
                    assert found == data[first : first + limit], (first, limit)

    async def test_an_empty_content(self) -> None:
        async with self.opened() as store:
            hash_ = await _upload(store, b"")
            assert await store.blob_bytes(hash_) == 0
            assert await store.load_blob(hash_) == b""

    async def test_a_part_that_is_too_large_is_refused(self) -> None:
        async with self.opened() as store:
            await _raises(InvalidRequestError, store.put_blob_part("00", 0, bytes(BLOB_PART_BYTES + 1), at=AT))
            await _raises(InvalidRequestError, store.put_blob_part("00", -1, b"x", at=AT))

    async def test_contents_come_with_the_transition_that_uses_them(self) -> None:
        async with self.opened() as store:
            data = b"x" * (2 * BLOB_PART_BYTES + 5)
            hash_ = _hash(data)
            for task_id in ("t1", "t2"):
                await record(store, **submission(task_id, blobs={hash_: data}, blob_uses=[hash_]))
            await record(store, **completion("t2", blob_uses=[hash_]))
            assert await store.blob_bytes(hash_) == len(data)
            assert await store.load_blob(hash_, first=BLOB_PART_BYTES - 1, limit=3) == b"xxx"

    async def test_a_content_and_its_use_in_one_batch(self) -> None:
        async with self.opened() as store:
            outcomes = await asyncio.gather(
                hand_over(store, **submission("t1", blobs={_hash(b"1"): b"1"}, blob_uses=[_hash(b"1")])),
                hand_over(store, **submission("t2", blob_uses=[_hash(b"1")])),
                hand_over(store, **submission("t3", blob_uses=[_hash(b"2")])),
            )
            assert [outcome is None for outcome in outcomes] == [True, True, False]

    async def test_using_what_is_not_there_is_refused(self) -> None:
        async with self.opened() as store:
            hash_ = await _upload(store, b"data")
            await _raises(CommitConflictError, store.use_blob(hash_, "none"))
            await record(store, **submission("t"))
            await _raises(CommitConflictError, store.use_blob("00", "t"))
            await store.put_blob_part("00", 0, b"not finished", at=AT)
            await _raises(CommitConflictError, store.use_blob("00", "t"))
            for _ in range(2):
                await store.use_blob(hash_, "t")

    async def test_contents_go_when_nobody_uses_them(self) -> None:
        async with self.opened() as store:
            used, young, old = [
                await _upload(store, data, at=at) for data, at in [(b"1", AT), (b"2", AT + 9), (b"", AT)]
            ]
            large = await _upload(store, b"4" * (40 * BLOB_PART_BYTES))
            await record(store, **submission("t", blob_uses=[used]))
            await store.put_blob_part("aa", 0, b"given up", at=AT)
            await store.put_blob_part("bb", 0, bytes(BLOB_PART_BYTES), at=AT)
            await store.put_blob_part("bb", 1, b"slow", at=AT + 9)
            assert await store.delete_unused_blobs(AT, 10) == 0
            assert await store.delete_unused_blobs(AT + 5, 10) == 3
            assert await store.delete_unused_blobs(AT + 5, 10) == 0
            assert [await store.blob_bytes(hash_) for hash_ in (used, young, old, large)] == [1, 1, None, None]
            await store.finish_blob("bb", BLOB_PART_BYTES + 4, AT + 10)
            await record(store, **completion("t"))
            assert await store.delete_unused_blobs(AT + 5, 10) == 0, "kept as long as the task"
            assert await store.delete_tasks(["t"]) == 1
            assert await store.delete_unused_blobs(AT + 50, 2) == 2
            assert await store.delete_unused_blobs(AT + 50, 2) == 1
            assert await store.blob_bytes(used) is None
            assert await _upload(store, b"1") == used
            assert await store.load_blob(used) == b"1"

    # --- removing tasks -------------------------------------------------------------------------------------------

    async def test_a_removed_task_leaves_nothing(self) -> None:
        async with self.opened() as store:
            for name in ("t", "other"):
                row = task_row(name, session_id="s")
                changes = submission(name, task=row, idempotency=(f"key {name}", "digest"), dead=[dead(name, 7)])
                await record(store, **changes, chunks=[chunk(name, 0, 3)])
                await record(store, **completion(name, task=task_row(name, 2, session_id="s", state="failed")))
            for removed in (1, 0):
                assert await store.delete_tasks(["t", "t", "none"]) == removed
            assert await store.load_task("t") is None
            assert await store.load_history("t") == []
            assert await store.load_chunks("t") == []
            assert await store.load_stream_end("t") == (0, {})
            assert await store.find_idempotent("key t") is None
            assert await store.find_idempotent("key other") == ("other", "digest")
            assert await _all_dead(store) == ["other:7"]
            assert await store.count_tasks() == {"failed": 1}
            assert await store.count_session_tasks("s") == (1, 0)
            assert await all_tasks(store, TaskFilter(session_id="s")) == ["other"]
            await record(store, **submission("t", idempotency=("key t", "another")), chunks=[chunk("t", 0)])
            assert await store.load_history("t") == [entry_row("t")]

    async def test_an_unfinished_task_is_removed_only_to_erase_it(self) -> None:
        async with self.opened() as store:
            kept, gone = [_hash(data) for data in (b"kept", b"gone")]
            await record(store, **submission("t", blobs={kept: b"kept", gone: b"gone"}, blob_uses=[kept, gone]))
            await record(store, **submission("u", blob_uses=[kept]))
            assert await store.delete_tasks(["t"]) == 0
            assert await store.load_deliveries("t") == [delivery("t")]
            assert await store.delete_tasks(["t"], erase=True) == 1
            assert await store.load_deliveries("t") == []
            assert await store.next_due() == AT + 60
            assert await store.blob_bytes(kept) == 4
            assert await store.blob_bytes(gone) is None
            assert await store.count_tasks() == {"submitted": 1}
            assert await store.delete_tasks(["u"], erase=True) == 1
            assert await store.next_due() is None
            assert await store.count_tasks() == {}

    async def test_what_came_late_for_an_erased_task_is_erased_too(self) -> None:
        async with self.opened() as store:
            await record(store, chunks=[chunk("t", 0)], sent=[delivery("t")], dead=[dead("t", 2)])
            assert await store.delete_tasks(["t"]) == 0
            assert await store.load_chunks("t") == [chunk("t", 0)]
            assert await store.delete_tasks(["t"], erase=True) == 0
            assert await store.load_chunks("t") == []
            assert await store.load_deliveries("t") == []
            assert await store.load_dead("t:2") is None
            assert await store.scrub()
            await record(store, **submission("t"))
            assert await store.count_tasks() == {"submitted": 1}

    async def test_counts_are_right_whatever_was_removed(self) -> None:
        async with self.opened() as store:
            names = [f"t{number}" for number in range(40)]
            await record_all(store, [submission(name) for name in names])
            await record_all(store, [completion(name) for name in names[:30]])
            kept = list(names)
            for removed in (["t0", "t1"], ["t29", "t13"], ["t39", "t38"], names[20:31], ["t2"], names):
                gone = await store.delete_tasks(removed, erase=True)
                assert gone == len([name for name in kept if name in removed])
                kept = [name for name in kept if name not in removed]
                counts = await store.count_tasks()
                assert sum(counts.values()) == await store.count_matching(TaskFilter()) == len(kept)
                ended = len([name for name in kept if name in names[:30]])
                assert counts.get("completed", 0) == await store.count_ended() == ended
                assert await all_tasks(store, limit=7) == kept[::-1]
                kept.append(f"new{len(kept)}{removed[0]}")
                await record(store, **submission(kept[-1]))
            assert await store.delete_tasks(kept, erase=True) == len(kept) == 6
            assert await store.count_tasks() == {}
            await record(store, **submission("t0"))
            assert await store.count_matching(TaskFilter()) == 1

    async def test_what_ended_before_a_time(self) -> None:
        async with self.opened() as store:
            for number in range(8):
                name = f"t{number}"
                row = task_row(name, 1, created_at=AT + number)
                await record(store, **submission(name, task=row))
                if number in (1, 2, 3, 4, 5, 7):
                    end = task_row(name, 2, state="completed", created_at=AT + number, ended_at=AT + number + 1)
                    await record(store, **completion(name, task=end))
            await record(store, sent=[delivery("t2", 2)], dead=[dead("t3"), dead("t4")])
            assert await store.ended_before(AT + 100, limit=10) == ["t1", "t5", "t7"]
            assert await store.mark_redriven("t4:1", "other")
            assert await store.ended_before(AT + 100, limit=10) == ["t1", "t4", "t5", "t7"]
            assert await store.ended_before(AT + 100, limit=2) == ["t1", "t4"]
            assert await store.ended_before(AT + 5.5, limit=10) == ["t1", "t4"]
            assert await store.ended_before(AT, limit=10) == []

    async def test_a_child_stays_while_its_caller_goes_on(self) -> None:
        async with self.opened() as store:
            await record(store, **submission("parent"))
            child = task_row("child", origin="child:parent")
            await record(store, **submission("child", task=child))
            end = task_row("child", 2, state="completed", origin="child:parent")
            await record(store, **completion("child", task=end))
            assert await store.ended_before(AT + 100, limit=10) == []
            await record(store, **completion("parent"))
            assert await store.ended_before(AT + 100, limit=10) == ["parent", "child"]

    async def test_sessions_without_a_task(self) -> None:
        async with self.opened() as store:
            for number in range(5):
                await record(store, session=SessionRow(f"s{number}", AT + number))
            await record(store, **submission("t", task=task_row("t", session_id="s1")))
            await record(store, **submission("s2"))  # a task of that id, in no session
            await record(store, shared=[SharedWrite("s0", "k", 0, b"1"), SharedWrite("s1", "k", 0, b"1")])
            assert await store.unused_sessions(AT + 4, limit=10) == ["s0", "s2", "s3"]
            assert await store.unused_sessions(AT + 4, limit=1) == ["s0"]
            assert await store.delete_session("s0", if_unused=True)
            assert not await store.delete_session("s1", if_unused=True)
            assert await store.unused_sessions(AT + 4, limit=10) == ["s2", "s3"]
            assert await store.load_shared("s0") == []
            assert len(await store.load_shared("s1")) == 1

    async def test_shrinking_comes_to_an_end(self) -> None:
        async with self.opened() as store:
            names = [f"t{number}" for number in range(30)]
            await record_all(store, [submission(name, entry=entry_row(name, data=bytes(1_000_000))) for name in names])
            assert await store.delete_tasks(names[:20], erase=True) == 20
            while await store.shrink():
                pass
            assert len(await all_tasks(store)) == 10

    async def test_a_task_is_taken_in_once(self) -> None:
        async with self.opened() as store:
            row = task_row("t", 2, state="completed", session_id="s", origin="import:t", error="")
            history, chunks = [entry_row("t", 1), entry_row("t", 2)], [chunk("t", 0, 2), chunk("t", 2)]
            await store.import_task(row, history, chunks)
            assert await store.load_task("t") == row
            assert await store.load_history("t") == history
            assert await store.load_chunks("t") == chunks
            assert await store.count_tasks() == {"completed": 1}
            await _raises(CommitConflictError, store.import_task(task_row("t"), [entry_row("t", 3)], []))
            assert await store.load_task("t") == row
            assert await store.load_history("t") == history

    # --- opening again --------------------------------------------------------------------------------------------

    async def test_what_is_kept_is_there_after_opening_again(self) -> None:
        if not self.durable:
            return
        async with self.opened() as store:
            await store.put_document("limit", "a", b"1")
            hash_ = await _upload(store, b"x" * (BLOB_PART_BYTES + 1))
            await record(store, **submission("t"), dead=[dead("t", 2)])
            await record(store, **submission("u"))
            await store.use_blob(hash_, "t")
            await store.mark_redriven("t:2", "other")
            await store.delete_tasks(["u"], erase=True)
        async with self.opened() as store:
            assert await store.load_documents("limit") == {"a": b"1"}
            assert await store.load_dead("t:2") == dead("t", 2, redriven="other")
            assert await store.load_blob(hash_, first=BLOB_PART_BYTES) == b"x"
            assert await store.delete_unused_blobs(AT + 1e9, 10) == 0
            assert await store.count_tasks() == {"submitted": 1}
            assert await store.load_task("u") is None
