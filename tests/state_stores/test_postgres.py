"""The PostgreSQL store: the conformance suite, and what is its own: round trips, plans, opening, copies."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest
from tests.support.postgres import execute
from tests.support.waiting import eventually

from llama_deploy.errors import (
    CommitConflictError,
    InvalidRequestError,
    LlamaDeployError,
    MissingExtraError,
    SettingError,
    ShardLostError,
    StoreExistsError,
    StoreKeyError,
    StoreLockedError,
    StoreReadOnlyError,
    StoreUnavailableError,
    StoreVersionError,
)
from llama_deploy.state_stores import MemoryStore, PostgresStore, SQLiteStore, StateStore
from llama_deploy.state_stores.base import SessionRow, SharedRead, SharedWrite, TaskFilter, Transition
from llama_deploy.state_stores.encrypted import EncryptedStore
from llama_deploy.state_stores.postgres_batch import batch_arguments
from llama_deploy.state_stores.postgres_connection import parse_address
from llama_deploy.state_stores.postgres_copy import restore_into
from llama_deploy.testing import StoreConformance
from llama_deploy.testing.recording import (
    AT,
    chunk,
    completion,
    dead,
    delivery,
    entry_row,
    hand_over,
    move,
    record,
    submission,
    task_row,
)
from llama_deploy.testing.store_backup import BackupConformance


class TestConformance(StoreConformance):
    @pytest.fixture(autouse=True)
    def _one_schema(self, empty_postgres_url: str) -> None:
        self.url = empty_postgres_url

    def make_store(self) -> StateStore:
        return PostgresStore(self.url)

    def make_follower(self) -> StateStore | None:
        return PostgresStore(self.url, claims=False)


@pytest.fixture
async def small(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PostgresStore]:
    """A store whose partitions have room for 600 tasks."""
    monkeypatch.setattr("llama_deploy.state_stores.postgres_schema.PARTITION_TASKS", 600)
    store = PostgresStore(postgres_url)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def store(empty_postgres_url: str) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(empty_postgres_url)
    await store.open()
    yield store
    await store.close()


# --- round trips ------------------------------------------------------------------------------------------------------


async def test_a_batch_is_one_statement_and_one_round_trip_whatever_is_in_it(store: PostgresStore) -> None:
    before = store.statistics.statements
    transitions = [
        submission(
            f"t{number}",
            idempotency=(f"key{number}", "digest"),
            chunks=[chunk(f"t{number}", 0)],
            session=SessionRow(f"s{number}", AT),
            shared=[SharedWrite(f"s{number}", "k", 0, b"1")],
            dead=[dead(f"t{number}", 2)],
            blobs={f"{number}": b"x"},
            blob_uses=[f"{number}"],
        )
        for number in range(100)
    ]
    assert await asyncio.gather(*[hand_over(store, **changes) for changes in transitions]) == [None] * 100
    assert (store.statistics.statements - before, store.statistics.commits) == (1, 1)
    await asyncio.gather(*[hand_over(store, **completion(f"t{number}")) for number in range(100)])
    assert (store.statistics.statements - before, store.statistics.transitions) == (2, 200)


async def test_what_is_refused_costs_no_further_round_trip(store: PostgresStore) -> None:
    numbers = [*range(50), 25, *range(50, 99), 7]
    outcomes = await asyncio.gather(*[hand_over(store, **submission(f"t{number}")) for number in numbers])
    refused = [index for index, outcome in enumerate(outcomes) if isinstance(outcome, CommitConflictError)]
    assert refused == [50, 100]
    assert (store.statistics.statements, store.statistics.commits) == (1, 1)


async def test_many_changes_of_one_task_share_a_commit(store: PostgresStore) -> None:
    await record(store, **submission("t", sent=[delivery("t", number) for number in range(1, 101)]))
    before = store.statistics.commits
    answers = [
        {
            "task": task_row("t", number + 1),
            "expected_version": number,
            "entry": entry_row("t", number + 1),
            "answered": [f"t:{number}"],
        }
        for number in range(1, 101)
    ]
    assert await asyncio.gather(*[hand_over(store, **changes) for changes in answers]) == [None] * 100
    assert store.statistics.commits - before == 1
    assert await store.load_task("t") == task_row("t", 101)
    assert len(await store.load_history("t")) == 101


async def test_no_statement_of_the_hot_path_reads_a_whole_table(store: PostgresStore) -> None:
    """The plans are made while the tables are empty, and must be right when they are full."""
    for size in range(3):
        names = [f"t{size}-{number}" for number in range(300)]
        await asyncio.gather(*[hand_over(store, **submission(name)) for name in names])
        await asyncio.gather(*[hand_over(store, **completion(name)) for name in names])
    reads = "SELECT relname, seq_tup_read FROM pg_stat_xact_user_tables WHERE schemaname = 'shared'"
    names = [f"u{number}" for number in range(50)]
    assert store._connection is not None
    async with store._connection.transaction():
        for changes in (submission, completion):
            arguments, _ = batch_arguments([Transition(settled=print, **changes(name)) for name in names], 64)
            number = store._batch_number + 1 + (changes is completion)
            await store._connection.fetchrow(
                store._record_sql[len(arguments)], store.owner, number, 50, [0], [store.held[0]], *arguments
            )
        found = {row[0]: row[1] for row in await store._connection.fetch(reads)}
    store._batch_number += 2
    for table in ("tasks", "deliveries", "history", "idempotency"):
        assert found.get(table, 0) == 0, found


class Batches:
    """Random batches about few tasks, steps and keys, of which many transitions do not fit."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._steps = 0
        self._sent: list[str] = []

    def batch(self) -> list[dict[str, Any]]:
        return [self._transition() for _ in range(self._chance.randint(1, 12))]

    def _transition(self) -> dict[str, Any]:
        chance = self._chance
        changes: dict[str, Any] = {}
        task_id = f"t{chance.randrange(4)}"
        if chance.random() < 0.8:
            version = chance.randrange(5)
            changes = {"task": task_row(task_id, version + 1), "expected_version": version}
            changes["entry"] = entry_row(task_id, version + 1)
        if chance.random() < 0.5:
            self._steps += 1
            changes["sent"] = [delivery(task_id, self._steps)]
        if self._sent and chance.random() < 0.3:
            changes["answered"] = [chance.choice(self._sent[-6:])]
        elif self._sent and chance.random() < 0.3:
            attempt = chance.randint(1, 2)
            changes["moved"] = [move(chance.choice(self._sent[-6:]), attempt, attempt + 1)]
        if chance.random() < 0.3:
            changes["shared"] = [SharedWrite("s", f"k{chance.randrange(2)}", chance.randrange(3), b"1")]
        if chance.random() < 0.2:
            changes["shared_reads"] = [SharedRead("s", f"k{chance.randrange(2)}", chance.randrange(3))]
        if "task" in changes and changes["expected_version"] == 0 and chance.random() < 0.3:
            changes["idempotency"] = (f"key{chance.randrange(3)}", "digest")
        self._sent += [step.step_id for step in changes.get("sent", ())]
        return changes


@pytest.mark.parametrize("seed", range(8))
async def test_a_batch_has_the_outcomes_of_its_transitions_one_after_the_other(store: PostgresStore, seed: int) -> None:
    model, batches = MemoryStore(), Batches(seed)
    await model.open()
    refused = 0
    for _ in range(25):
        batch = batches.batch()
        expected = [await hand_over(model, **changes) for changes in batch]
        found = await asyncio.gather(*[hand_over(store, **changes) for changes in batch])
        assert [outcome is None for outcome in found] == [outcome is None for outcome in expected], batch
        refused += sum(outcome is not None for outcome in found)
    assert refused > 20
    for number in range(4):
        assert await store.load_task(f"t{number}") == await model.load_task(f"t{number}")
        assert await store.load_history(f"t{number}") == await model.load_history(f"t{number}")
        assert await store.load_deliveries(f"t{number}") == await model.load_deliveries(f"t{number}")
    by_key = lambda value: value.key  # noqa: E731 - two lines that say the same
    assert sorted(await store.load_shared("s"), key=by_key) == sorted(await model.load_shared("s"), key=by_key)
    await model.close()


# --- opening ----------------------------------------------------------------------------------------------------------


async def test_a_second_control_plane_is_refused_while_the_first_lives(store: PostgresStore) -> None:
    second = PostgresStore(store._address.dsn + "?schema=shared")
    with pytest.raises(StoreLockedError, match=str(os.getpid())):
        await second.open()
    await record(store, **submission("t"))


async def test_who_died_leaves_its_shards_at_once_and_what_it_still_sends_is_refused(empty_postgres_url: str) -> None:
    first = PostgresStore(empty_postgres_url)
    await first.open()
    await record(first, **submission("t"))
    assert first._connection is not None
    first._connection.terminate()  # as the kernel does when a process is killed
    second = PostgresStore(empty_postgres_url)
    await second.open()
    assert dict(second.held) == {shard: epoch + 1 for shard, epoch in first.held.items()}
    assert isinstance(await hand_over(first, **completion("t")), ShardLostError)
    assert not first.healthy
    assert isinstance(await hand_over(first, **submission("u")), ShardLostError)
    await record(second, **completion("t"))
    await first.close()
    assert await second.renew_shards() == dict(second.held)
    await second.close()


async def test_what_was_handed_over_before_a_loss_is_refused_though_the_shard_is_held_again(
    empty_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = PostgresStore(empty_postgres_url, claims=False)
    second = PostgresStore(empty_postgres_url, claims=False)
    await first.open()
    await second.open()
    await first.claim_shards()
    cut, write = asyncio.Event(), first._write_piece

    async def write_later(piece: list[Transition]) -> dict[int, LlamaDeployError] | None:
        await cut.wait()
        return await write(piece)

    monkeypatch.setattr(first, "_write_piece", write_later)
    early = [hand_over(first, **submission("t"))]
    await eventually(lambda: first._in_flight)
    early.append(hand_over(first, **submission("u")))
    await eventually(lambda: first._pending)
    await first._run("renew_owner", first.owner, 0.0)  # its lease is over
    await second.claim_shards()
    await second.release_shards()
    await first.claim_shards()
    later = hand_over(first, **submission("v"))
    cut.set()
    assert [type(outcome) for outcome in await asyncio.gather(*early)] == [ShardLostError, ShardLostError]
    assert await later is None
    assert [await first.load_task(name) for name in ("t", "u")] == [None, None]
    assert first._too_late == set()
    assert first.backlog == 0
    await record(first, **submission("t"))
    await first.close()
    await second.close()


@pytest.mark.parametrize(
    ("url", "error", "words"),
    [
        ("postgresql://nobody-such@127.0.0.1:1/none", StoreUnavailableError, "cannot be opened"),
        ("postgresql://h/d?schema=", SettingError, "schema"),
        ("postgresql://h/d?shards=none", SettingError, "shards"),
        ("postgresql://h:port/d", SettingError, "URL"),
    ],
)
async def test_a_url_that_leads_nowhere(
    url: str, error: type[LlamaDeployError], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama_deploy.state_stores.postgres.OPEN_DEADLINE_S", 0.1)
    with pytest.raises(error, match=words):
        await PostgresStore(url).open()


async def test_a_database_that_is_not_there_and_one_of_another_program(postgres_database: str) -> None:
    with pytest.raises(StoreUnavailableError, match="does not exist"):
        await PostgresStore(postgres_database + "_none").open()
    await execute(postgres_database, "CREATE SCHEMA theirs")
    await execute(postgres_database, "CREATE TABLE theirs.tasks (a int)")
    with pytest.raises(StoreVersionError, match="another program"):
        await PostgresStore(f"{postgres_database}?schema=theirs").open()
    await execute(postgres_database, "CREATE TABLE theirs.meta (name text, value text)")
    with pytest.raises(StoreVersionError, match="another program"):
        await PostgresStore(f"{postgres_database}?schema=theirs").open()


async def test_a_user_without_rights_is_told_so(postgres_database: str) -> None:
    role = f"reader_{token_hex(4)}"
    await execute(postgres_database, f"CREATE ROLE {role} LOGIN")
    try:
        host = postgres_database.partition("@")[2]
        with pytest.raises(StoreReadOnlyError, match="cannot be written") as caught:
            await PostgresStore(f"postgresql://{role}@{host}?schema=not_mine").open()
        assert "create a schema" in caught.value.fix
    finally:
        await execute(postgres_database, f"DROP ROLE {role}")


async def test_an_encrypted_store_needs_its_key_and_shows_nothing(postgres_url: str) -> None:
    key = bytes(32)
    store = EncryptedStore(PostgresStore(postgres_url), [key])
    await store.open()
    await record(store, **submission("t", entry=entry_row("t", data=b"secret")))
    assert await store.load_history("t") == [entry_row("t", data=b"secret")]
    assert len(store.held) == store.shards_count == 64
    await store.close()
    with pytest.raises(StoreKeyError, match="no key"):
        await PostgresStore(postgres_url).open()


def test_no_password_is_ever_shown() -> None:
    url = "postgresql://me:se%40cret@one:1,two:2/base?sslmode=require&schema=a&password=secret2"
    address = parse_address(url)
    assert address.location == "postgresql://me@one:1,two:2/base?schema=a"
    assert "cret" not in repr(address) + repr(vars(PostgresStore(url)))
    assert "target_session_attrs=primary" in address.dsn, "of several servers, the one that can be written"
    assert parse_address("postgresql://h/d?statement_cache_size=0").proxied
    with pytest.raises(SettingError) as caught:
        parse_address("postgresql://me:secret@h:1/d?nonsense")
    assert "secret" not in caught.value.render()


def test_without_the_driver_it_says_which_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(MissingExtraError, match="asyncpg") as caught:
        PostgresStore("postgresql://h/d")
    assert caught.value.fix == "pip install 'llama-deploy-engine[postgres]'"


async def test_text_that_postgresql_cannot_hold(store: PostgresStore) -> None:
    outcomes = await asyncio.gather(
        hand_over(store, **submission("before")),
        hand_over(store, **submission("n\0l")),
        hand_over(store, **submission("after", dead=[dead("after", 2, message="a\0b\ud800")])),
        hand_over(store, shared=[SharedWrite("s", "a\0b", 0, b"1")]),
    )
    assert [outcome is None for outcome in outcomes] == [True, False, True, True]
    assert await store.load_dead("after:2") == dead("after", 2, message="a\0b\ud800")
    assert (await store.load_shared("s"))[0].key == "a\0b"
    with pytest.raises(InvalidRequestError):
        await store.load_task("n\0l")
    with pytest.raises(InvalidRequestError):
        await store.put_document("limit", "n\0l", b"1")


# --- words between control planes -------------------------------------------------------------------------------------


async def test_what_is_announced_is_heard_by_the_others_once_and_apart_from_commits(empty_postgres_url: str) -> None:
    first, second = PostgresStore(empty_postgres_url), PostgresStore(empty_postgres_url, claims=False)
    heard: dict[str, list[str]] = {"first": [], "second": []}
    for name, store in (("first", first), ("second", second)):
        await store.open()
        store.listen(heard[name].append)
    await eventually(lambda: heard["first"] == heard["second"] == [""])
    for _ in range(100):
        first.announce("task t")
        first.announce("ü u")
    await eventually(lambda: heard["second"] == ["", "task t", "ü u"])
    await eventually(lambda: first._notices.statements == 1)  # others may hear of it before whoever said it
    assert first.statistics.statements == 0
    assert heard["first"] == [""], "nobody hears itself"
    database = empty_postgres_url.partition("?")[0]
    listening = "application_name LIKE 'llama_deploy%' AND query LIKE 'LISTEN%'"
    await execute(database, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {listening}")
    await eventually(lambda: heard["second"][3:] == [""])
    await eventually(lambda: heard["first"] == ["", ""])
    second.announce("back")
    await eventually(lambda: heard["first"] == ["", "", "back"])
    await second.close()
    await first.close()


# --- partitions -------------------------------------------------------------------------------------------------------


async def _run_through(store: PostgresStore, names: Sequence[str]) -> None:
    assert await asyncio.gather(*[hand_over(store, **submission(name)) for name in names]) == [None] * len(names)
    assert await asyncio.gather(*[hand_over(store, **completion(name)) for name in names]) == [None] * len(names)
    await store._make_partitions()


async def test_history_is_dropped_by_the_partition(small: PostgresStore) -> None:
    names = [f"t{number}" for number in range(1, 2101)]
    for first in range(0, 2100, 300):
        await _run_through(small, names[first : first + 300])
    assert [row[0] for row in await small._rows("old_partitions")] == [0, 600, 1200]
    assert not await small.shrink()
    assert await small.delete_tasks([name for name in names[:1500] if name != "t900"]) == 1499
    assert await small.load_history("t3") == []
    kept = [entry_row("t900", 1), entry_row("t900", 2)]
    assert await small.load_history("t900") == kept
    history = f"SELECT count(*) FROM {small._schema}.history"
    assert (await small._fetch(history))[0][0] == 2 * 2100, "not row by row"
    shrunk = 0
    while await small.shrink():
        shrunk += 1
        assert shrunk < 20
    assert (await small._fetch(history))[0][0] == 2 * (1 + 600 + 301), "one task of 600, all of 1200 and 1800"
    assert [row[0] for row in await small._rows("old_partitions")] == [600, 1200]
    assert await small.load_history("t900") == kept
    assert await small.count_tasks() == {"completed": 601}
    await record(small, **submission("t3"))
    assert await small.load_history("t3") == [entry_row("t3")]


async def test_a_partition_that_is_missing_is_made_when_it_is_needed(small: PostgresStore) -> None:
    for first in range(0, 2000, 500):
        small._tables.partition_end = 10**9  # nobody looks ahead
        names = [f"t{number}" for number in range(first, first + 500)]
        assert await asyncio.gather(*[hand_over(small, **submission(name)) for name in names]) == [None] * 500
    assert await small.count_tasks() == {"submitted": 2000}


# --- moving -----------------------------------------------------------------------------------------------------------


async def test_a_store_moves_from_a_file_into_a_database_and_back(tmp_path: Path, postgres_url: str) -> None:
    file = SQLiteStore(tmp_path / "store.db")
    await file.open()
    suite = BackupConformance()
    await suite._fill(file)
    await file.backup(tmp_path / "copy.db")
    await file.close()
    facts = await restore_into(tmp_path / "copy.db", PostgresStore(postgres_url))
    assert (facts.tasks, facts.unfinished) == (2, 1)
    store = PostgresStore(postgres_url)
    await store.open()
    await store.backup(tmp_path / "back.db")
    await suite._check(store)
    await record(store, **submission("later"))
    assert [row.task_id for row in (await store.list_tasks(TaskFilter(), limit=1)).rows] == ["later"]
    assert await store.due_deliveries(AT + 99, limit=9) == [delivery("t"), delivery("later")]
    await store.close()
    back = SQLiteStore(tmp_path / "back.db")
    await back.open()
    await suite._check(back)
    await back.close()
    with pytest.raises(StoreExistsError, match="there is a store"):
        await restore_into(tmp_path / "copy.db", PostgresStore(postgres_url))
