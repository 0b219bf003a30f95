"""PostgreSQL that is not well: restarts, cut connections, commits of unknown outcome, a server that cannot be written.

A server of its own is started where a test stops it. What counts is that nothing that was acknowledged is lost, nothing
is recorded twice, and nothing is refused that was recorded.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from tests.support import DEADLINE_S, eventually
from tests.support.cutting_proxy import CuttingProxy
from tests.support.postgres import PostgresServer, execute

from llama_deploy.errors import CommitConflictError, StoreUnavailableError
from llama_deploy.state_stores import PostgresStore
from llama_deploy.state_stores.base import Transition
from llama_deploy.state_stores.postgres_batch import batch_arguments
from llama_deploy.testing.recording import Outcome, completion, hand_over, record, submission, task_row


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(url)
    await store.open()
    try:
        yield store
    finally:
        async with asyncio.timeout(DEADLINE_S):
            await store.close()


class Load:
    """Tasks that are submitted and ended, one after the other in several lines, and what was said about each."""

    def __init__(self, store: PostgresStore, lines: int = 8) -> None:
        self._store = store
        self._number = 0
        self.settled: dict[str, list[Outcome]] = {}
        self.running = True
        for _ in range(lines):
            self._submit()

    def _submit(self) -> None:
        if not self.running:
            return
        name = f"load{self._number}"
        self._number += 1
        self.settled[name] = []
        self._store.record(Transition(settled=lambda outcome: self._end(name, outcome), **submission(name)))

    def _end(self, name: str, outcome: Outcome) -> None:
        self.settled[name].append(outcome)
        self._store.record(Transition(settled=lambda outcome: self._ended(name, outcome), **completion(name)))

    def _ended(self, name: str, outcome: Outcome) -> None:
        self.settled[name].append(outcome)
        self._submit()

    async def check(self, others: int = 0) -> None:
        """Everything was said once, everything that was said is so, and nobody was refused anything."""
        self.running = False
        await eventually(lambda: self._store.backlog == 0)
        assert {tuple(outcomes) for outcomes in self.settled.values()} == {(None, None)}
        counts = await self._store.count_tasks()
        assert (counts["completed"], counts.get("submitted", 0)) == (self._number, others)
        rows = await self._store._fetch(f"SELECT count(*), count(DISTINCT number) FROM {self._store._schema}.history")
        assert tuple(rows[0]) == (2 * self._number + others, self._number + others)

    @property
    def ended(self) -> int:
        return sum(len(outcomes) == 2 for outcomes in self.settled.values())


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    server = PostgresServer()
    server.start()
    yield server
    server.remove()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT])
async def test_the_server_restarts_and_crashes_under_load(server: PostgresServer, how: signal.Signals) -> None:
    async with opened(f"{server.url}?schema=restart_{how.name.lower()}") as store:
        load = Load(store)
        for _ in range(3):
            ended = load.ended
            await eventually(lambda: load.ended > ended + 50)  # noqa: B023
            await asyncio.to_thread(server.stop, how)
            await eventually(lambda: not store.healthy)
            assert store.last_error
            assert store.backlog > 0
            reading = asyncio.ensure_future(store.load_task("load0"))
            await server.started()
            assert (await reading) == task_row("load0", 2, state="completed")
            await eventually(lambda: store.healthy)
        await load.check()


@pytest.mark.slow
async def test_a_standby_is_promoted_under_load(server: PostgresServer) -> None:
    await server.lets_people_in()
    standby = PostgresServer(standby_of=server)
    try:
        await standby.started()
        await execute(server.url, "ALTER SYSTEM SET synchronous_standby_names = '*'")
        await execute(server.url, "SELECT pg_reload_conf()")
        url = f"postgresql://postgres@127.0.0.1:{server.port},127.0.0.1:{standby.port}/postgres?schema=failover"
        async with opened(url) as store:
            load = Load(store)
            await eventually(lambda: load.ended > 50)
            await asyncio.to_thread(server.stop, signal.SIGQUIT)
            await eventually(lambda: not store.healthy)
            assert store.backlog > 0
            await asyncio.to_thread(standby.promote)
            ended = load.ended
            await eventually(lambda: load.ended > ended + 50)
            await load.check()
    finally:
        standby.remove()
        await server.started()
        await execute(server.url, "ALTER SYSTEM RESET synchronous_standby_names")
        await execute(server.url, "SELECT pg_reload_conf()")


async def test_a_server_that_is_not_there_yet_is_waited_for(server: PostgresServer) -> None:
    await asyncio.to_thread(server.stop)
    opening = asyncio.ensure_future(_open_and_close(f"{server.url}?schema=late"))
    await asyncio.sleep(0)
    await server.started()
    await opening


async def _open_and_close(url: str) -> None:
    async with opened(url) as store:
        await record(store, **submission("t"))


async def test_a_read_has_a_deadline(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama_deploy.state_stores.postgres_reads.READ_DEADLINE_S", 0.2)
    async with opened(f"{server.url}?schema=deadline") as store:
        await asyncio.to_thread(server.stop)
        with pytest.raises(StoreUnavailableError, match="cannot be reached"):
            await store.load_task("t")
        await server.started()


# --- connections ------------------------------------------------------------------------------------------------------


def _through(proxy: CuttingProxy, url: str) -> str:
    parts = urlsplit(url)
    return f"postgresql://postgres@127.0.0.1:{proxy.port}{parts.path}?{parts.query}"


def _before(url: str) -> CuttingProxy:
    parts = urlsplit(url)
    return CuttingProxy(parts.hostname or "127.0.0.1", parts.port or 5432)


async def test_connections_are_cut_under_load(empty_postgres_url: str) -> None:
    async with _before(empty_postgres_url) as proxy, opened(_through(proxy, empty_postgres_url)) as store:
        load = Load(store)
        for _ in range(10):
            ended = load.ended
            await eventually(lambda: load.ended > ended + 20)  # noqa: B023
            proxy.cut()
        await load.check()


async def test_the_outcome_of_a_commit_that_nobody_heard_of_is_told(empty_postgres_url: str) -> None:
    async with _before(empty_postgres_url) as proxy, opened(_through(proxy, empty_postgres_url)) as store:
        await record(store, **submission("known"))  # from now on a batch is one request and one answer
        for number in range(5):
            commits = store.statistics.commits
            proxy.answers_to_cut = 1
            outcomes = await asyncio.gather(
                hand_over(store, **submission(f"t{number}")),
                hand_over(store, **submission("known")),
                hand_over(store, **submission(f"u{number}")),
            )
            assert outcomes[0] is None
            assert isinstance(outcomes[1], CommitConflictError)
            assert outcomes[2] is None
            assert store.statistics.commits == commits + 1
        assert (proxy.cuts, store.statistics.retried_batches) == (5, 5)
        assert await store.count_tasks() == {"submitted": 11}
        load = Load(store)
        for _ in range(10):
            ended = load.ended
            await eventually(lambda: load.ended > ended + 20)  # noqa: B023
            proxy.answers_to_cut = 2
        proxy.answers_to_cut = 0
        await load.check(others=11)


async def test_a_zombie_of_an_earlier_batch_changes_nothing(empty_postgres_url: str) -> None:
    """What a cut connection still carried arrives when the batch after it is recorded."""
    async with opened(empty_postgres_url) as store:
        await record(store, **submission("t"))
        await record(store, **submission("u"))
        assert store._connection is not None
        arguments, _ = batch_arguments([Transition(settled=print, **submission("zombie"))], 64)
        with pytest.raises(asyncpg.PostgresError, match="was followed by batch"):
            await store._connection.fetchrow(
                store._record_sql[len(arguments)], store.owner, 1, 1, [0], [store.held[0]], *arguments
            )
        told = await store._connection.fetchrow(
            store._record_sql[len(arguments)], store.owner, 2, 1, [0], [store.held[0]], *arguments
        )
        assert list(told["refused"]) == []
        assert await store.load_task("zombie") is None


# --- a server that does not do what it is asked -----------------------------------------------------------------------


async def test_a_database_that_becomes_read_only_is_waited_for(empty_postgres_url: str) -> None:
    database = urlsplit(empty_postgres_url).path[1:]
    async with opened(empty_postgres_url) as store:
        await record(store, **submission("t"))
        await execute(
            empty_postgres_url.partition("?")[0], f"ALTER DATABASE {database} SET default_transaction_read_only = on"
        )
        try:
            assert store._connection is not None
            store._connection.terminate()
            outcome = hand_over(store, **completion("t"))
            await eventually(lambda: not store.healthy)
            assert "read-only" in store.last_error
            assert not outcome.done()
            assert await store.load_task("t") == task_row("t")
        finally:
            admin = await asyncpg.connect(empty_postgres_url.partition("?")[0])
            await admin.execute("SET default_transaction_read_only = off")
            await admin.execute(f"ALTER DATABASE {database} RESET default_transaction_read_only")
            await admin.close()
        assert await outcome is None
        assert store.healthy


@contextlib.asynccontextmanager
async def somebody_else(url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """Another connection, in a transaction that is rolled back."""
    connection = await asyncpg.connect(url.partition("?")[0])
    try:
        await connection.execute("SET deadlock_timeout = '10s'")  # the store is the one that notices
        await connection.execute("BEGIN")
        yield connection
    finally:
        connection.terminate()


async def test_a_statement_timeout_is_survived(empty_postgres_url: str) -> None:
    async with opened(empty_postgres_url) as store:
        await record(store, **submission("t"))
        assert store._connection is not None
        await store._connection.execute("SET statement_timeout = '50ms'")
        async with somebody_else(empty_postgres_url) as other:
            await other.execute(f"SELECT FROM {store._schema}.tasks WHERE task_id = 't' FOR UPDATE")
            outcomes = [hand_over(store, **completion("t")), hand_over(store, **submission("u"))]
            await eventually(lambda: not store.healthy)
            assert "timeout" in store.last_error
            assert store.statistics.retried_batches > 3
        assert await asyncio.gather(*outcomes) == [None, None]
        assert store.healthy


async def test_a_serialisation_conflict_is_tried_again(empty_postgres_url: str) -> None:
    async with opened(empty_postgres_url) as store:
        await record(store, **submission("t"))
        assert store._connection is not None
        await store._connection.execute("SET default_transaction_isolation = 'repeatable read'")
        waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND pid <> pg_backend_pid())"
        async with somebody_else(empty_postgres_url) as other:
            await other.execute(f"UPDATE {store._schema}.tasks SET task_id = task_id WHERE task_id = 't'")
            outcomes = [hand_over(store, **completion("t")), hand_over(store, **submission("u"))]
            await eventually(lambda: other.fetchval(waits))
            retried = store.statistics.retried_batches
            await other.execute("COMMIT")
            assert await asyncio.gather(*outcomes) == [None, None]
        assert store.statistics.retried_batches > retried


async def test_a_deadlock_is_tried_again(empty_postgres_url: str) -> None:
    async with opened(empty_postgres_url) as store:
        for name in ("a", "b"):
            await record(store, **submission(name))
        lock = f"SELECT FROM {store._schema}.tasks WHERE task_id = $1 FOR UPDATE"
        waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND pid <> pg_backend_pid())"
        async with somebody_else(empty_postgres_url) as other:
            await other.execute(lock, "b")
            outcomes = [hand_over(store, **completion(name)) for name in ("a", "b")]
            await eventually(lambda: other.fetchval(waits))
            locking = asyncio.ensure_future(other.execute(lock, "a"))
            await eventually(lambda: "deadlock" in store.last_error)
            await locking
        assert await asyncio.gather(*outcomes) == [None, None]


# --- a pooling proxy --------------------------------------------------------------------------------------------------


@pytest.fixture
def pooled_url(empty_postgres_url: str, free_port: int) -> Iterator[str]:
    """PgBouncer that gives every transaction another connection."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    assert program is not None, "no PgBouncer: run `make servers`"
    parts = urlsplit(empty_postgres_url)
    folder = Path(tempfile.mkdtemp(prefix="llama-deploy-pgbouncer-"))  # its user reads nothing below `tmp_path`
    folder.chmod(0o755)
    file = folder / "pgbouncer.ini"
    file.write_text(
        f"[databases]\n* = host={parts.hostname} port={parts.port or 5432}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
        f"listen_port = {free_port}\nauth_type = any\npool_mode = transaction\ndefault_pool_size = 3\n"
        "unix_socket_dir =\nserver_round_robin = 1\n".replace("* = ", f"* = user={parts.username or 'postgres'} "),
        encoding="utf-8",
    )
    file.chmod(0o644)
    user = "postgres" if os.geteuid() == 0 else None
    process = subprocess.Popen([program, str(file)], user=user, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"postgresql://postgres@127.0.0.1:{free_port}{parts.path}?{parts.query}&statement_cache_size=0"
    yield url
    process.terminate()
    process.wait(DEADLINE_S)
    shutil.rmtree(folder)


async def test_the_store_works_behind_transaction_pooling(pooled_url: str) -> None:
    async with opened(pooled_url) as store:
        load = Load(store)
        await eventually(lambda: load.ended > 100)
        await load.check()
        await store.put_document("limit", "a", b"1")
        assert await store.load_documents("limit") == {"a": b"1"}
        await store.put_blob_part("aa", 0, b"x", at=1.0)
        await store.finish_blob("aa", 1, 1.0)
        assert await store.load_blob("aa") == b"x"
