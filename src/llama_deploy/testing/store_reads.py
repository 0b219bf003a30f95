"""The part of the store suite that is about reading, and about what changes outside of transitions.

A third party's store runs it through `StoreConformance`, not by itself.
"""

# ruff: noqa: PLR2004 - the numbers in a test are its facts

from __future__ import annotations

from llama_deploy.errors import InvalidRequestError
from llama_deploy.state_stores.base import SessionRow, SharedWrite, StateStore, TaskFilter
from llama_deploy.testing.recording import (
    AT,
    StoreSuite,
    all_tasks,
    chunk,
    completion,
    delivery,
    entry_row,
    move,
    record,
    record_all,
    refused,
    submission,
    task_row,
)


async def _due(store: StateStore, now: float, limit: int = 100) -> list[str]:
    return [row.step_id for row in await store.due_deliveries(now, limit=limit)]


class ReadConformance(StoreSuite):
    """What the reading methods promise, and `make_due`, `delete_session` and the services."""

    async def test_nothing_is_found_in_an_empty_store(self) -> None:
        async with self.opened() as store:
            assert await store.load_task("none") is None
            assert await store.load_deliveries("none") == []
            assert await store.load_history("none") == []
            assert await store.load_chunks("none") == []
            assert await store.load_stream_end("none") == (0, {})
            assert await store.load_session("none") is None
            assert await store.load_shared("none") == []
            assert await store.find_idempotent("none") is None
            assert await store.load_services() == {}
            assert await store.count_tasks() == {}
            assert await store.due_deliveries(AT, limit=10) == []
            assert await store.next_due() is None
            assert await store.make_due(AT) == 0
            assert (await store.list_tasks(TaskFilter(), limit=10)).rows == []
            assert (await store.list_sessions(limit=10)).next is None

    # --- one task -------------------------------------------------------------------------------------------------

    async def test_history_is_read_from_any_entry_on(self) -> None:
        async with self.opened() as store:
            await record(store, **submission("t"))
            await record_all(
                store,
                [
                    {"task": task_row("t", n), "expected_version": n - 1, "entry": entry_row("t", n)}
                    for n in range(2, 13)
                ],
            )
            assert [entry.seq for entry in await store.load_history("t")] == list(range(1, 13))
            assert [entry.seq for entry in await store.load_history("t", after=10)] == [11, 12]
            assert [entry.seq for entry in await store.load_history("t", after=3, limit=2)] == [4, 5]
            assert await store.load_history("t", after=12) == []

    async def test_deliveries_are_read_in_the_order_of_sending(self) -> None:
        async with self.opened() as store:
            steps = [delivery("t", number, visible_at=AT - number) for number in range(1, 13)]
            await record(store, **submission("t", sent=steps[:6]))
            await record(store, sent=[delivery("t", number, seq=2, index=number - 7) for number in range(7, 13)])
            await record(store, moved=[move("t:3")], answered=["t:5"])
            found = await store.load_deliveries("t")
            assert [row.step_id for row in found] == [f"t:{number}" for number in range(1, 13) if number != 5]

    async def test_a_task_has_its_own_rows_only(self) -> None:
        async with self.opened() as store:
            names = ["a", "a:", "a:1", "a:1:1", "a;", "aa", "A", "%", "a%", "_"]
            for name in names:
                await record(store, **submission(name, chunks=[chunk(name, 0)]))
            for name in names:
                assert await store.load_deliveries(name) == [delivery(name)]
                assert await store.load_history(name) == [entry_row(name)]
                assert await store.load_chunks(name) == [chunk(name, 0)]

    async def test_chunks_are_read_from_any_event_on(self) -> None:
        async with self.opened() as store:
            chunks = [chunk("t", 0, 3), chunk("t", 3, 1), chunk("t", 4, 6)]
            await record_all(store, [{"chunks": [part]} for part in chunks])
            for first in range(10):
                expected = [part for part in chunks if part.first + part.count > first]
                assert await store.load_chunks("t", first=first) == expected, first
                assert await store.load_chunks("t", first=first, limit=1) == expected[:1], first
            assert await store.load_chunks("t", first=10) == []

    async def test_the_end_of_a_stream_by_step_and_attempt(self) -> None:
        async with self.opened() as store:
            await record(store, chunks=[chunk("t", 0, 2), chunk("t", 2, 3)])
            assert await store.load_stream_end("t") == (5, {"t:1": (1, 5)})
            await record(store, chunks=[chunk("t", 5, 1, step_id="t:2", attempt_first=0)])
            assert await store.load_stream_end("t") == (6, {"t:1": (1, 5), "t:2": (1, 1)})
            marker = chunk("t", 6, 1, attempt=2, attempt_first=-1)
            await record(store, chunks=[marker])
            assert await store.load_stream_end("t") == (7, {"t:1": (2, 0), "t:2": (1, 1)})
            await record(store, chunks=[chunk("t", 7, 2, attempt=2, attempt_first=0)])
            assert await store.load_stream_end("t") == (9, {"t:1": (2, 2), "t:2": (1, 1)})
            assert await store.load_chunks("t", first=6, limit=1) == [marker]

    async def test_idempotency_keys_lead_to_their_tasks(self) -> None:
        async with self.opened() as store:
            await record(store, **submission("t", idempotency=("key", "digest")))
            await record(store, **completion("t"))
            assert await store.find_idempotent("key") == ("t", "digest")
            assert await store.find_idempotent("Key") is None

    # --- lists of tasks -------------------------------------------------------------------------------------------

    async def test_tasks_are_listed_newest_first_or_oldest_first(self) -> None:
        async with self.opened() as store:
            names = [f"t{number}" for number in (3, 1, 4, 2, 5)]
            await record_all(store, [submission(name, task=task_row(name, created_at=AT)) for name in names])
            await record(store, **completion("t1"))
            oldest_first = TaskFilter(oldest_first=True)
            for limit in (1, 2, 5, 100):
                assert await all_tasks(store, limit=limit) == names[::-1]
                assert await all_tasks(store, oldest_first, limit=limit) == names
            assert (await store.list_tasks(TaskFilter(), limit=5)).next is None
            assert (await store.list_tasks(TaskFilter(), limit=4)).next is not None

    async def test_tasks_are_listed_by_state_service_and_session(self) -> None:
        async with self.opened() as store:
            states = ["submitted", "working", "input_required", "completed", "failed", "canceled"]
            rows = [
                task_row(f"{state}-{service}-{session}", state=state, service=service, session_id=session)
                for state in states
                for service in ("a", "b")
                for session in ("s1", "s2")
            ]
            await record_all(store, [{"task": row, "entry": entry_row(row.task_id)} for row in rows])
            for wanted_states in (None, (), ("working",), ("working", "failed"), ("failed", "canceled"), tuple(states)):
                for service in (None, "b", "none"):
                    for session_id in (None, "s2"):
                        where = TaskFilter(states=wanted_states, service=service, session_id=session_id)
                        expected = [
                            row.task_id
                            for row in reversed(rows)
                            if (wanted_states is None or row.state in wanted_states)
                            and (service is None or row.service == service)
                            and (session_id is None or row.session_id == session_id)
                        ]
                        assert await all_tasks(store, where, limit=5) == expected, where

    async def test_a_task_without_a_session_is_in_no_sessions_list(self) -> None:
        async with self.opened() as store:
            await record(store, **submission("t"))
            assert await all_tasks(store, TaskFilter(session_id="t")) == []

    async def test_pages_have_no_gap_and_no_duplicate_while_tasks_come_and_change(self) -> None:
        async with self.opened() as store:
            names = [f"t{number}" for number in range(20)]
            await record_all(store, [submission(name) for name in names])
            for oldest_first in (False, True):
                where, cursor = TaskFilter(oldest_first=oldest_first), None
                seen: list[str] = []
                added: list[str] = []
                while True:
                    page = await store.list_tasks(where, limit=3, cursor=cursor)
                    seen += [row.task_id for row in page.rows]
                    cursor = page.next
                    if cursor is None:
                        break
                    if len(added) < 5:
                        added.append(f"new{oldest_first}{len(added)}")
                        await record(store, **submission(added[-1]))
                    version = len(await store.load_history("t0")) + 1
                    await record(
                        store,
                        task=task_row("t0", version),
                        expected_version=version - 1,
                        entry=entry_row("t0", version),
                    )
                old = [task_id for task_id in seen if task_id in names]
                assert old == (names if oldest_first else names[::-1])
                assert len(set(seen)) == len(seen)
                assert added == [task_id for task_id in seen if task_id in added] or not oldest_first

    async def test_a_cursor_that_is_not_ours_is_refused(self) -> None:
        async with self.opened() as store:
            await record(store, **submission("t", session=SessionRow("s", AT)))
            for cursor in ("", "x", "-1", "1.5", "1 OR 1", "9" * 30, "٣", "²", "\ud800"):
                try:
                    await store.list_tasks(TaskFilter(), limit=1, cursor=cursor)
                except InvalidRequestError:
                    continue
                raise AssertionError(f"cursor {cursor!r} was accepted")

    async def test_tasks_are_counted_by_state(self) -> None:
        async with self.opened() as store:
            await record_all(store, [submission(f"t{number}") for number in range(6)])
            await record_all(store, [completion(f"t{number}") for number in range(3)])
            await record(store, **completion("t3", task=task_row("t3", 2, state="failed")))
            await refused(store, **submission("t4"))
            assert await store.count_tasks() == {"submitted": 2, "completed": 3, "failed": 1}

    async def test_a_sessions_tasks_are_counted(self) -> None:
        async with self.opened() as store:
            names = [f"t{number}" for number in range(5)]
            await record_all(store, [submission(name, task=task_row(name, session_id="s")) for name in names])
            await record(store, **submission("alone"))
            await record(store, **submission("other", task=task_row("other", session_id="s2")))
            for name, state in [("t0", "completed"), ("t1", "failed"), ("t2", "working")]:
                await record(store, **completion(name, task=task_row(name, 2, session_id="s", state=state)))
            assert await store.count_session_tasks("s") == (5, 3)
            assert await store.count_session_tasks("s2") == (1, 1)
            assert await store.count_session_tasks("alone") == (0, 0)

    # --- due deliveries -------------------------------------------------------------------------------------------

    async def test_due_deliveries_come_longest_overdue_first(self) -> None:
        async with self.opened() as store:
            offsets = [5, 1, 4, 2, 3]
            steps = [delivery("t", number, visible_at=AT + offset) for number, offset in enumerate(offsets, start=1)]
            await record(store, **submission("t", sent=steps))
            in_order = ["t:2", "t:4", "t:5", "t:3", "t:1"]
            assert await _due(store, AT + 0.5) == []
            assert await _due(store, AT + 3) == in_order[:3], "due at its very time"
            assert await _due(store, AT + 9) == in_order
            assert await _due(store, AT + 9, limit=2) == in_order[:2]
            assert await store.due_deliveries(AT + 1, limit=5) == [steps[1]]
            assert await store.next_due() == AT + 1
            await record(store, answered=["t:2"], moved=[move("t:4", visible_at=AT + 4.5)])
            assert await store.next_due() == AT + 3
            assert await _due(store, AT + 9) == ["t:5", "t:3", "t:4", "t:1"]

    async def test_a_parked_delivery_is_never_due(self) -> None:
        async with self.opened() as store:
            await record(store, **submission("t", sent=[delivery("t", 1, parked=1), delivery("t", 2)]))
            await record(store, moved=[move("t:2", 1, 1, parked=3)])
            assert await store.next_due() is None
            assert await _due(store, AT + 1e9) == []
            assert await store.make_due(AT) == 0
            assert [row.parked for row in await store.load_deliveries("t")] == [1, 3]
            await record(store, moved=[move("t:1", visible_at=AT)])
            assert await _due(store, AT) == ["t:1"]

    async def test_make_due_calls_back_everything_that_is_not_parked(self) -> None:
        async with self.opened() as store:
            steps = [
                delivery("t", 1, visible_at=AT + 60),
                delivery("t", 2, visible_at=AT - 60),
                delivery("t", 3, visible_at=AT + 60, parked=1),
            ]
            await record(store, **submission("t", sent=steps))
            for _ in range(2):
                assert await store.make_due(AT) == 2
                assert await _due(store, AT) == ["t:2", "t:1"]
                assert [row.visible_at for row in await store.load_deliveries("t")] == [AT, AT - 60, AT + 60]
            assert await store.next_due() == AT - 60

    # --- sessions and services ------------------------------------------------------------------------------------

    async def test_sessions_are_listed_newest_first(self) -> None:
        async with self.opened() as store:
            names = ["b", "d", "a", "c", "e"]
            for name in names:
                await record(store, session=SessionRow(name, AT))
            seen: list[str] = []
            cursor = None
            while True:
                page = await store.list_sessions(limit=2, cursor=cursor)
                seen += [row.session_id for row in page.rows]
                cursor = page.next
                if cursor is None:
                    break
                await record(store, session=SessionRow(f"new{len(seen)}", AT))
            assert seen == names[::-1]

    async def test_a_deleted_session_leaves_its_tasks(self) -> None:
        async with self.opened() as store:
            row = task_row("t", session_id="s")
            await record(store, **submission("t", task=row, session=SessionRow("s", AT)))
            await record(store, shared=[SharedWrite("s", "k", 0, b"1"), SharedWrite("s2", "k", 0, b"1")])
            assert await store.delete_session("s")
            assert not await store.delete_session("s")
            assert await store.load_session("s") is None
            assert await store.load_shared("s") == []
            assert len(await store.load_shared("s2")) == 1
            assert await store.load_task("t") == row
            assert await all_tasks(store, TaskFilter(session_id="s")) == ["t"]
            await record(store, session=SessionRow("s", AT + 1), shared=[SharedWrite("s", "k", 0, b"2")])
            assert await store.load_session("s") == SessionRow("s", AT + 1)

    async def test_services_are_put_replaced_and_forgotten(self) -> None:
        async with self.opened() as store:
            await store.put_service("a", b"1")
            await store.put_service("b", b"2")
            await store.put_service("a", b"3")
            assert await store.load_services() == {"a": b"3", "b": b"2"}
            assert await store.delete_service("a")
            assert not await store.delete_service("a")
            assert await store.load_services() == {"b": b"2"}
