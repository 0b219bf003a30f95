"""The part of the store suite that is about recording: guards, whole or not at all, order, batches, closing.

A third party's store runs it through `StoreConformance`, not by itself.
"""

# ruff: noqa: PLR2004 - the numbers in a test are its facts

from __future__ import annotations

import asyncio
import threading
from typing import Any

from llama_deploy.errors import CommitConflictError
from llama_deploy.state_stores.base import SessionRow, SharedRead, SharedValue, SharedWrite, StateStore, Transition
from llama_deploy.testing.recording import (
    AT,
    Outcome,
    StoreSuite,
    all_tasks,
    chunk,
    completion,
    dead,
    delivery,
    entry_row,
    hand_over,
    move,
    record,
    record_all,
    refused,
    submission,
    task_row,
)


async def _prepare(store: StateStore) -> None:
    """Record what the bad transitions of `_bad_transitions` stumble over."""
    await record(
        store,
        **submission("known", shared=[SharedWrite("room", "key", 0, b"1")], idempotency=("used", "digest")),
        chunks=[chunk("known", 0, 3)],
    )


def _bad_transitions() -> dict[str, dict[str, Any]]:
    """Make one transition per guard, of a task of its own, which that guard alone must refuse."""
    return {
        "insert of an existing task": {"task": task_row("known"), "entry": entry_row("known", 2)},
        "stale version": {"task": task_row("known", 9), "expected_version": 8, "entry": entry_row("known", 9)},
        "update of a missing task": {"task": task_row("none", 2), "expected_version": 1},
        "repeated history entry": {**submission("b1"), "entry": entry_row("known", 1)},
        "answered before": submission("b2", answered=["known:2"]),
        "answered twice": submission("b3", answered=["known:1", "known:1"]),
        "sent before": submission("b4", sent=[delivery("b4"), delivery("known")]),
        "attempt has moved": submission("b5", moved=[move("known:1", expected_attempt=2, attempt=3)]),
        "move of a closed step": submission("b6", moved=[move("known:2")]),
        "shared key exists": submission("b7", shared=[SharedWrite("room", "key", 0, b"2")]),
        "shared key is newer": submission("b8", shared=[SharedWrite("room", "key", 2, b"2")]),
        "shared key is missing": submission("b9", shared=[SharedWrite("room", "other", 1, b"2")]),
        "shared read is stale": submission("b10", shared_reads=[SharedRead("room", "key", 2)]),
        "shared read of what was absent": submission("b11", shared_reads=[SharedRead("room", "key", 0)]),
        "shared read of what is gone": submission("b12", shared_reads=[SharedRead("room", "other", 1)]),
        "idempotency key used": submission("b13", idempotency=("used", "other digest")),
        "repeated chunk": submission("b14", chunks=[chunk("known", 0, 3)]),
        "content is missing": submission("b15", blob_uses=["00"]),
        "content without a task": {"entry": entry_row("b16"), "blobs": {"00": b"x"}},
    }


class TransitionConformance(StoreSuite):
    """What `record` promises."""

    async def test_records_everything_of_a_transition(self) -> None:
        async with self.opened() as store:
            changes = submission("t", task=task_row("t", session_id="room"), idempotency=("key", "digest"))
            await record(
                store,
                **changes,
                shared=[SharedWrite("room", "k", 0, b'"v"')],
                chunks=[chunk("t", 0, 2)],
                session=SessionRow("room", AT),
            )
            assert await store.load_task("t") == changes["task"]
            assert await store.load_history("t") == [changes["entry"]]
            assert await store.load_deliveries("t") == changes["sent"]
            assert await store.load_shared("room") == [SharedValue("k", 1, b'"v"')]
            assert await store.load_chunks("t") == [chunk("t", 0, 2)]
            assert await store.load_session("room") == SessionRow("room", AT)
            assert await store.find_idempotent("key") == ("t", "digest")

    async def test_keeps_every_value_as_it_was(self) -> None:
        async with self.opened() as store:
            task_id = 'it\'s "ü" :;%_ \U0001f999'
            task = task_row(task_id, session_id="s p a c e", created_at=0.1 + 0.2, updated_at=1e-9, steps=2**40)
            step = delivery(task_id, visible_at=1_700_000_000.123456, attempt=7, seq=3, parked=2)
            entry = entry_row(task_id, data="ü\U0001f999\0".encode())
            await record(store, task=task, entry=entry, sent=[step], shared=[SharedWrite("s", "'", 0, b"")])
            assert await store.load_task(task_id) == task
            assert await store.load_deliveries(task_id) == [step]
            assert await store.load_history(task_id) == [entry]
            assert await store.load_shared("s") == [SharedValue("'", 1, b"")]

    async def test_a_failing_guard_refuses_the_whole_and_harms_no_neighbour(self) -> None:
        async with self.opened() as store:
            await _prepare(store)
            for number, (guard, bad) in enumerate(_bad_transitions().items()):
                extra = {
                    "chunks": [*bad.get("chunks", ()), chunk(f"stray{number}", 0)],
                    "session": SessionRow(f"stray{number}", AT),
                    "shared": [*bad.get("shared", ()), SharedWrite(f"stray{number}", "k", 0, b"1")],
                    "dead": [dead(f"stray{number}")],
                }
                outcomes = await asyncio.gather(
                    hand_over(store, **submission(f"before{number}")),
                    hand_over(store, **{**bad, **extra}),
                    hand_over(store, **submission(f"after{number}")),
                )
                assert isinstance(outcomes[1], CommitConflictError), f"{guard} was not refused"
                assert outcomes[0] is None, f"{guard} harmed the transition before it"
                assert outcomes[2] is None, f"{guard} harmed the transition after it"
                assert await store.load_session(f"stray{number}") is None, guard
                assert await store.load_shared(f"stray{number}") == [], guard
                assert await store.load_chunks(f"stray{number}") == [], guard
                assert await store.load_dead(f"stray{number}:1") is None, guard
                assert await store.blob_bytes("00") is None, guard
                assert await store.load_task(f"before{number}") is not None
                assert await store.load_deliveries(f"after{number}") == [delivery(f"after{number}")]
            await self._nothing_has_changed(store, len(_bad_transitions()))

    async def _nothing_has_changed(self, store: StateStore, attempts: int) -> None:
        assert await store.load_task("known") == task_row("known")
        assert await store.load_history("known") == [entry_row("known")]
        assert await store.load_deliveries("known") == [delivery("known")]
        assert await store.load_shared("room") == [SharedValue("key", 1, b"1")]
        assert await store.load_chunks("known") == [chunk("known", 0, 3)]
        assert await store.find_idempotent("used") == ("known", "digest")
        assert sorted(await all_tasks(store)) == sorted(
            ["known", *[f"{side}{number}" for number in range(attempts) for side in ("before", "after")]]
        )
        assert await store.count_tasks() == {"submitted": 1 + 2 * attempts}

    async def test_the_same_transition_twice_is_refused(self) -> None:
        async with self.opened() as store:
            outcomes = await asyncio.gather(*[hand_over(store, **submission("t")) for _ in range(2)])
            assert outcomes[0] is None
            assert isinstance(outcomes[1], CommitConflictError)
            await refused(store, **submission("t"))
            await record(store, **completion("t"))
            await refused(store, **completion("t"))
            assert await store.load_history("t") == [entry_row("t", 1), entry_row("t", 2)]

    async def test_the_first_answer_wins(self) -> None:
        async with self.opened() as store:
            await record(store, **submission("t"))
            outcomes = await asyncio.gather(*[hand_over(store, answered=["t:1"]) for _ in range(3)])
            assert [outcome is None for outcome in outcomes] == [True, False, False]
            await refused(store, answered=["t:1"])
            assert await store.load_deliveries("t") == []

    async def test_a_move_changes_the_delivery_in_its_place(self) -> None:
        async with self.opened() as store:
            await record(store, **submission("t", sent=[delivery("t", 1), delivery("t", 2)]))
            await record(store, moved=[move("t:1", visible_at=AT + 5)])
            assert await store.load_deliveries("t") == [
                delivery("t", 1, attempt=2, visible_at=AT + 5),
                delivery("t", 2),
            ]
            await record(store, moved=[move("t:1", 2, 2, visible_at=AT + 9, parked=4)])
            first, _ = await store.load_deliveries("t")
            assert (first.attempt, first.visible_at, first.parked) == (2, AT + 9, 4)
            await refused(store, moved=[move("t:1", 1, 2)])

    async def test_shared_keys_are_guarded_by_their_versions(self) -> None:
        async with self.opened() as store:
            for version, value in enumerate([b"1", b"2", None]):
                await record(store, shared=[SharedWrite("s", "k", version, value)])
                assert await store.load_shared("s") == [SharedValue("k", version + 1, value)]
            await refused(store, shared=[SharedWrite("s", "k", 0, b"anew")])
            await refused(store, shared_reads=[SharedRead("s", "k", 0)])
            await record(store, shared=[SharedWrite("s", "k", 3, b"4")], shared_reads=[SharedRead("s", "k", 3)])
            assert await store.load_shared("s") == [SharedValue("k", 4, b"4")]
            await record(store, shared=[SharedWrite("other", "k", 0, b"x")], shared_reads=[SharedRead("other", "k", 0)])

    async def test_a_session_that_exists_is_left_alone(self) -> None:
        async with self.opened() as store:
            await record(store, **submission("t1", session=SessionRow("s", AT)))
            await record(store, **submission("t2", session=SessionRow("s", AT + 9)))
            assert await store.load_session("s") == SessionRow("s", AT)

    # --- one batch ------------------------------------------------------------------------------------------------

    async def test_transitions_of_one_batch_build_on_one_another(self) -> None:
        async with self.opened() as store:
            steps = [
                submission("t", shared=[SharedWrite("s", "k", 0, b"1")], chunks=[chunk("t", 0)]),
                {"task": task_row("t", 2), "expected_version": 1, "entry": entry_row("t", 2), "moved": [move("t:1")]},
                {"shared": [SharedWrite("s", "k", 1, b"2")], "chunks": [chunk("t", 1)]},
                {"moved": [move("t:1", 2, 3)], "shared_reads": [SharedRead("s", "k", 2)]},
                completion("t", 3, sent=[delivery("t", 2)]),
                {"answered": ["t:2"]},
            ]
            await record_all(store, steps)
            assert await store.load_task("t") == task_row("t", 3, state="completed")
            assert [entry.seq for entry in await store.load_history("t")] == [1, 2, 3]
            assert await store.load_deliveries("t") == []
            assert await store.load_shared("s") == [SharedValue("k", 2, b"2")]
            assert await store.load_stream_end("t") == (2, {"t:1": (1, 2)})

    async def test_within_a_batch_the_earlier_transition_counts_first(self) -> None:
        """Handed over later is applied later: what an earlier one took away, a later one of the batch cannot use."""
        async with self.opened() as store:
            key_1 = SharedRead("s", "k", 1)
            pairs: list[tuple[dict[str, Any], dict[str, Any]]] = [
                ({"answered": ["t0:1"]}, {"moved": [move("t0:1")]}),
                ({"answered": ["t1:1"]}, {"answered": ["t1:1"]}),
                ({"moved": [move("t2:1")]}, {"moved": [move("t2:1")]}),
                ({"shared": [SharedWrite("s", "k", 1, b"2")]}, {"shared_reads": [key_1]}),
                ({"shared": [SharedWrite("s", "n", 0, b"2")]}, {"shared": [SharedWrite("s", "n", 0, b"3")]}),
                (submission("t5", idempotency=("key", "1")), submission("t6", idempotency=("key", "2"))),
            ]
            await record(store, shared=[SharedWrite("s", "k", 0, b"1")])
            for number, (first, second) in enumerate(pairs):
                if number < 3:
                    await record(store, **submission(f"t{number}"))
                outcomes = await asyncio.gather(hand_over(store, **first), hand_over(store, **second))
                assert outcomes[0] is None, first
                assert isinstance(outcomes[1], CommitConflictError), (first, second)

    async def test_what_builds_on_a_refused_transition_is_refused(self) -> None:
        async with self.opened() as store:
            await record(store, **submission("t"))
            outcomes = await asyncio.gather(
                hand_over(store, **completion("t", 5)),
                hand_over(store, **completion("t", 6)),
                hand_over(store, **submission("other")),
            )
            assert [outcome is None for outcome in outcomes] == [False, False, True]
            assert await store.load_task("t") == task_row("t")

    async def test_text_that_cannot_be_stored_harms_nobody_else(self) -> None:
        """JSON can spell half of a surrogate pair, which no encoding has."""
        async with self.opened() as store:
            outcomes: list[asyncio.Future[Outcome]] = [
                hand_over(store, **submission("before")),
                hand_over(store, **submission("bad", idempotency=("\ud800", "digest"))),
                hand_over(store, **submission("after")),
            ]
            assert await outcomes[0] is None
            assert await outcomes[2] is None
            await outcomes[1]
            await record(store, **submission("later"))

    # --- being told -----------------------------------------------------------------------------------------------

    async def test_settled_comes_in_order_on_the_loop_after_record_returned(self) -> None:
        async with self.opened() as store:
            told: list[tuple[int, bool]] = []
            threads: set[int] = set()
            done = asyncio.Event()

            def settle(number: int, outcome: Outcome) -> None:
                told.append((number, outcome is None))
                threads.add(threading.get_ident())
                if len(told) == 2000:
                    done.set()

            for number in range(2000):
                changes = submission(f"t{number - number % 3 % 2}")  # every third repeats its neighbour
                store.record(Transition(settled=lambda outcome, n=number: settle(n, outcome), **changes))  # type: ignore[misc]
                if number % 500 == 499:
                    await asyncio.sleep(0)
            assert [number for number, _ in told] == list(range(len(told)))
            await done.wait()
            assert told == [(number, number % 3 != 1) for number in range(2000)]
            assert threads == {threading.get_ident()}

    async def test_settled_is_never_called_inside_record(self) -> None:
        async with self.opened() as store:
            outcome = hand_over(store, **submission("t"))
            assert not outcome.done()
            assert await outcome is None

    async def test_reads_see_what_was_settled(self) -> None:
        async with self.opened() as store:
            for number in range(30):
                task_id = f"t{number}"
                outcomes = [hand_over(store, **submission(f"{task_id}-{other}")) for other in range(3)]
                assert await outcomes[1] is None
                assert await store.load_task(f"{task_id}-0") is not None
                assert await store.load_task(f"{task_id}-1") is not None
                assert len(await store.load_deliveries(f"{task_id}-1")) == 1
                await asyncio.gather(*outcomes)

    async def test_more_may_be_handed_over_while_settling(self) -> None:
        async with self.opened() as store:
            ended: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

            def complete(outcome: Outcome) -> None:
                assert outcome is None
                store.record(Transition(settled=ended.set_result, **completion("t")))

            store.record(Transition(settled=complete, **submission("t")))
            assert await ended is None
            assert await store.count_tasks() == {"completed": 1}

    async def test_backlog_and_health_and_statistics(self) -> None:
        async with self.opened() as store:
            assert (store.backlog, store.healthy) == (0, True)
            before = store.statistics.commits
            outcomes = [hand_over(store, **submission(f"t{number}")) for number in range(100)]
            assert store.backlog == 100
            assert await asyncio.gather(*outcomes) == [None] * 100
            await record(store, **submission("last"))
            assert (store.backlog, store.healthy) == (0, True)
            assert store.statistics.commits - before < 50, "transitions that wait together share a commit"
            assert store.statistics.transitions >= 101
            assert store.statistics.conflicts == 0
            await refused(store, **submission("last"))
            assert store.statistics.conflicts == 1

    async def test_rare_writes_get_their_turn_under_load(self) -> None:
        async with self.opened() as store:
            numbers = iter(range(1_000_000))
            busy = True

            def again(_: Outcome) -> None:
                if busy:
                    store.record(Transition(settled=again, **submission(f"t{next(numbers)}")))

            for _ in range(4):
                again(None)
                await asyncio.sleep(0)
            async with asyncio.timeout(5):
                await store.put_service("echo", b"{}")
                await store.make_due(AT)
                assert not await store.delete_session("none")
            busy = False

    # --- opening and closing --------------------------------------------------------------------------------------

    async def test_close_records_what_was_handed_over(self) -> None:
        store = self.make_store()
        await store.open()
        outcomes = [hand_over(store, **submission(f"t{number}")) for number in range(1500)]
        await store.close()
        await store.close()
        assert all(outcome.done() and outcome.result() is None for outcome in outcomes)
        if self.durable:
            async with self.opened() as store:
                assert await store.count_tasks() == {"submitted": 1500}

    async def test_everything_is_there_after_opening_again(self) -> None:
        if not self.durable:
            return
        async with self.opened() as store:
            await _prepare(store)
            await record(store, **submission("done", session=SessionRow("room", AT)))
            await record(store, **completion("done"), shared=[SharedWrite("room", "key", 1, None)])
            await store.put_service("echo", b"{}")
        async with self.opened() as store:
            assert await store.load_task("known") == task_row("known")
            assert await store.load_deliveries("known") == [delivery("known")]
            assert await store.load_history("done") == [entry_row("done", 1), entry_row("done", 2)]
            assert await store.load_stream_end("known") == (3, {"known:1": (1, 3)})
            assert await store.load_shared("room") == [SharedValue("key", 2, None)]
            assert await store.load_session("room") == SessionRow("room", AT)
            assert await store.find_idempotent("used") == ("known", "digest")
            assert await store.load_services() == {"echo": b"{}"}
            assert await store.count_tasks() == {"submitted": 1, "completed": 1}
            assert await store.next_due() == AT + 60
            await refused(store, **submission("known"))
            await record(store, **completion("known"))
