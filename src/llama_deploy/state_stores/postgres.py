"""The PostgreSQL store: group commit over one connection, one statement and one round trip per batch.

What is handed over while a batch is on its way becomes the next one. Guards are checked in the database, by the
function that records (`sql/postgres/0002_record.sql`); a transition that fails is refused alone. Every batch has a
number, which is recorded with it: when a connection is lost and nobody knows whether the commit was made, the same
batch is sent again under the same number, and either recorded now, or its recorded outcome is told. Whatever the
server does (restarts, fails over, runs out of space, becomes read-only), the batch is kept and tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_deploy.errors import CommitConflictError, LlamaDeployError, ShardLostError, StoreUnavailableError
from llama_deploy.runtime import failpoint
from llama_deploy.runtime.logs import get_logger
from llama_deploy.state_stores.base import StoreStatistics, Transition
from llama_deploy.state_stores.postgres_batch import (
    ALL_ARGUMENTS,
    COMMON_ARGUMENTS,
    batch_arguments,
    contradicts_itself,
    first_that_fits_not,
    record_statement,
)
from llama_deploy.state_stores.postgres_connection import (
    TRANSIENT,
    is_about_values,
    opening_error,
    parse_address,
    pause_s,
    sqlstate,
)
from llama_deploy.state_stores.postgres_notices import PostgresNotices
from llama_deploy.state_stores.postgres_shards import PostgresShards, new_owner
from llama_deploy.state_stores.shards import shard_of_transition

if TYPE_CHECKING:
    import asyncpg

log = get_logger("llama_deploy.store")

BATCH_TRANSITIONS_MAX = 256
"""Transitions in one batch at most; what is beyond waits for the next one. Finding the one that is refused costs in
proportion, and so does the time for which others wait for the rows."""
OPEN_DEADLINE_S = 15.0
"""How long opening waits for a server that is not there, or is starting."""
QUIET_FAILURES = 2
"""So many conflicts with others in a row are nothing unusual; then a batch is halved, and the store is not well."""
_NO_PARTITION = "23514"

_Outcomes = list[LlamaDeployError | None]


class PostgresStore(PostgresShards):
    """A store in a schema of a PostgreSQL database (13 or later).

    `url` is `postgresql://user@host:port/database`; what it leaves out comes from the environment and the password
    file. Of its query, `schema` names the schema (`llama_deploy`), `statement_cache_size=0` says that a proxy pools
    transactions, `shards` is the number of shards when the schema is made (64); everything else is for the driver
    (`sslmode`, `sslrootcert`, `passfile`, `target_session_attrs`, …). With `claims`, opening takes the lead of every
    shard and keeps it; without, whoever uses the store claims, renews and releases.
    """

    def __init__(self, url: str, *, owner: str | None = None, claims: bool = True) -> None:
        address = parse_address(url)
        super().__init__(address, owner=owner or new_owner(), claims=claims)
        self.location = address.location
        self.statistics = StoreStatistics()
        self.shards_count = address.shards
        self._record_sql = {
            COMMON_ARGUMENTS: record_statement(self._schema, common=True),
            ALL_ARGUMENTS: record_statement(self._schema),
        }
        self._connection: asyncpg.Connection[Any] | None = None
        self._statements: dict[int, Any] = {}
        self._pending: list[Transition] = []
        self._in_flight: list[Transition] = []
        self._too_late: set[int] = set()
        """Of those two, by identity: what was handed over for a shard that was lost since, though it be held again."""
        self._batch_number = 0
        self._highest = 0
        self._healthy = True
        self._closing = False
        self._failures = 0
        self._wanted = asyncio.Event()
        self._handed_over = self._done = 0
        self._awaited: list[tuple[int, asyncio.Future[None]]] = []
        """Who waits until so many are settled."""
        self._tasks: list[asyncio.Task[None]] = []
        self._notices = PostgresNotices(self._connections, address.schema, self.owner)

    # --- opening and closing ----------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Beyond the contract: raises `StoreUnavailableError` when there is no server, or it does not let us in."""
        await self._connect_at_first()
        try:
            await self._connections.open_pool()
            self._closed = self._closing = False
            await self._register()
            if self._claims:
                await self._claim_all()
        except BaseException:
            await self._disconnect()
            raise
        self._tasks = [asyncio.ensure_future(self._write_for_ever())]
        if self._claims:
            self._tasks.append(asyncio.ensure_future(self._renew_for_ever()))

    async def _connect_at_first(self) -> None:
        """Connect and bring the schema up to date; a server that is not there yet is waited for."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + OPEN_DEADLINE_S
        failures = 0
        while True:
            try:
                await self._connect()
                assert self._connection is not None
                meta = await self._tables.open(self._connection, expects_encryption=self.expects_encryption)
                await self._tables.finish_migrations(self._connection)
            except self._connections.all_errors as error:
                await self._drop_connection()
                hopeless = opening_error(error, self.location)
                if hopeless is not None:
                    raise hopeless from error
                failures += 1
                pause = pause_s(failures)
                if loop.time() + pause > ends_at:
                    why = str(error) or type(error).__name__
                    raise StoreUnavailableError(
                        f"{self.location} cannot be opened", why=why, fix="start the server, or name another one"
                    ) from error
                await asyncio.sleep(pause)
            except BaseException:
                await self._drop_connection()
                raise
            else:
                self.shards_count = int(meta["shards"])
                return

    async def _connect(self) -> None:
        """The connection that writes, with the statement that records prepared on it."""
        self._connection = await self._connections.connect()
        self._statements = {}

    async def _drop_connection(self) -> None:
        connection, self._connection, self._statements = self._connection, None, {}
        if connection is not None:
            connection.terminate()

    async def _writer_execute(self, name: str, *parameters: Any) -> None:
        assert self._connection is not None
        await self._connection.execute(self._sql[name], *parameters)

    async def close(self) -> None:
        if self._closed:
            return
        self._closing = True
        await self._settled()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._notices.close()
        await self._leave()
        await self._disconnect()

    async def _disconnect(self) -> None:
        self._closed = True
        connection, self._connection, self._statements = self._connection, None, {}
        if connection is not None:
            with contextlib.suppress(*self._connections.all_errors):
                await connection.close(timeout=3.0)
        await self._connections.close_pool()

    async def _settled(self) -> None:
        if self._done < self._handed_over:
            settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._awaited.append((self._handed_over, settled))
            await settled

    # --- writing ----------------------------------------------------------------------------------------------------

    @property
    def healthy(self) -> bool:
        return self._healthy and (bool(self._held) or not self._claims)

    @property
    def backlog(self) -> int:
        return len(self._pending) + len(self._in_flight)

    def record(self, transition: Transition) -> None:
        if self._closed or self._closing:
            raise StoreUnavailableError("the store is closed")
        self._pending.append(transition)
        self._handed_over += 1
        self._wanted.set()

    async def _write_for_ever(self) -> None:
        """One batch after the other; the next one is on its way while the consequences of the last are worked on."""
        previous: tuple[list[Transition], _Outcomes] | None = None
        while True:
            batch = self._take()
            writing = asyncio.ensure_future(self._write(batch)) if batch else None
            if previous is not None:
                if writing is not None:
                    await asyncio.sleep(0)  # so that the batch is on its way
                self._settle(*previous)
                previous = None
            if writing is not None:
                try:
                    previous = (batch, await writing)
                except asyncio.CancelledError:
                    writing.cancel()
                    raise
                self._in_flight = []
                if self._too_late:
                    self._too_late.difference_update(map(id, previous[0]))
                failpoint("store.after_commit")
            elif not self._pending:
                self._wanted.clear()
                await self._wanted.wait()

    def _take(self) -> list[Transition]:
        """The transitions of the next batch, in the order in which they were handed over."""
        if not self._pending:
            return []
        batch = self._pending[:BATCH_TRANSITIONS_MAX]
        if len(batch) > 1:
            batch = batch[: first_that_fits_not(batch)]
        del self._pending[: len(batch)]
        self._in_flight = batch
        return batch

    def _lose(self, shards: Iterable[int]) -> None:
        """What was decided under an epoch is not recorded under a later one (rule 8 of the architecture)."""
        lost = [shard for shard in shards if shard in self._held]
        if lost:
            waiting = chain(self._in_flight, self._pending)
            late = (one for one in waiting if shard_of_transition(one, self.shards_count) in lost)
            self._too_late.update(map(id, late))
        super()._lose(lost)

    def _settle(self, batch: Sequence[Transition], outcomes: _Outcomes) -> None:
        for transition, outcome in zip(batch, outcomes, strict=True):
            try:
                transition.settled(outcome)
            except Exception as error:  # a defect of one task's follow-up must not keep the others from theirs
                log.exception("what follows a commit failed", exc_info=error)
        self._done += len(batch)
        failpoint("store.after_settled")
        for awaited in [one for one in self._awaited if one[0] <= self._done]:
            self._awaited.remove(awaited)
            if not awaited[1].done():
                awaited[1].set_result(None)

    async def _write(self, batch: list[Transition]) -> _Outcomes:
        """Record a batch, however long that takes; returns the refusal of each transition, or `None`."""
        outcomes: _Outcomes = [None] * len(batch)
        left: list[list[int]] = [list(range(len(batch)))]
        while left:
            positions = left.pop()
            for position in list(positions):
                if contradicts_itself(batch[position]):
                    outcomes[position] = _refusal(batch[position])
                    positions.remove(position)
            if not positions:
                continue
            refused = await self._write_piece([batch[position] for position in positions])
            if refused is None:
                if len(positions) == 1:
                    outcomes[positions[0]] = CommitConflictError("that cannot be stored", why=self.last_error)
                    continue
                middle = len(positions) // 2
                left += [positions[middle:], positions[:middle]]
                continue
            for index, error in refused.items():
                outcomes[positions[index]] = error
        self.statistics.transitions += len(batch)
        return outcomes

    async def _write_piece(self, piece: list[Transition]) -> dict[int, LlamaDeployError] | None:
        """Record these transitions; returns the refusals by position, or `None` when they must be halved."""
        refused: dict[int, LlamaDeployError] = {}
        positions = list(range(len(piece)))
        failures = 0
        while positions:
            try:
                arguments, touched = batch_arguments(
                    [piece[p] for p in positions], self.shards_count, self.blob_part_bytes
                )
            except UnicodeError as error:
                self.last_error = str(error)
                return None
            found = await self._shards_lost(piece, positions, touched, refused)
            if found is None:
                continue
            try:
                failpoint("store.before_commit")
                answer = await self._send(len(positions), found, arguments)
            except Exception as error:  # noqa: BLE001 - whatever it is, the batch must not be lost: see `_failed`
                failures += 1
                if not await self._failed(error, failures, len(positions)):
                    return None
                continue
            self._went_well(answer[2])
            if answer[1]:
                self._lose(shard for shard in answer[1] if self._held.get(shard) == found[shard])
                await self._look_for_losses()
                continue
            for index in answer[0]:
                refused[positions[index]] = _refusal(piece[positions[index]])
            self.statistics.conflicts += bool(answer[0])
            break
        return refused

    async def _shards_lost(
        self,
        piece: list[Transition],
        positions: list[int],
        touched: set[int] | None,
        refused: dict[int, LlamaDeployError],
    ) -> dict[int, int] | None:
        """The epochs that a batch counts on; `None` when some of it was for shards that are not held: it is refused."""
        needed = {*self._held, *self.lost} if touched is None else touched
        late = bool(self._too_late) and any(id(piece[position]) in self._too_late for position in positions)
        if not late and needed <= self._held.keys() and (needed or touched is not None):
            return {shard: self._held[shard] for shard in needed}
        for position in list(positions):
            shard = shard_of_transition(piece[position], self.shards_count)
            gone = shard not in self._held or id(piece[position]) in self._too_late
            if (shard is None and (self.lost or not self._held)) or (shard is not None and gone):
                refused[position] = ShardLostError(
                    "another control plane leads the session", why=f"shard {shard} is not held by {self.owner}"
                )
                positions.remove(position)
                self.statistics.conflicts += 1
        return None

    async def _send(
        self, count: int, epochs: dict[int, int], arguments: list[Any]
    ) -> tuple[list[int], list[int], int | None]:
        """One batch over the connection: refused positions, lost shards, the highest number of a task."""
        if self._connection is None or self._connection.is_closed():
            await self._connect()
            await self._register()
        assert self._connection is not None
        shards = sorted(epochs)
        parameters = (
            self.owner,
            self._batch_number + 1,
            count,
            shards,
            [epochs[shard] for shard in shards],
            *arguments,
        )
        self.statistics.statements += 1
        if self._address.proxied:
            async with self._connection.transaction():
                row = await self._connection.fetchrow(self._record_sql[len(arguments)], *parameters)
        else:
            statement = self._statements.get(len(arguments))
            if statement is None:
                statement = await self._connection.prepare(self._record_sql[len(arguments)])
                self._statements[len(arguments)] = statement
            row = await statement.fetchrow(*parameters)
        if not row[1]:
            self._batch_number += 1
            self.statistics.commits += 1
        return row[0], row[1], row[2]

    def _went_well(self, highest: int | None) -> None:
        self._healthy = True
        self._failures = 0
        if highest is not None:
            self._highest = highest
            if self._tables.needs_partition(highest):
                self._tables.partition_end += self._tables.partition_tasks  # asked once; see `_failed` for the worst
                task = asyncio.ensure_future(self._make_partitions())
                self._tasks.append(task)
                task.add_done_callback(self._tasks.remove)

    async def _make_partitions(self) -> None:
        try:
            async with self._connections.connection() as connection:
                await self._tables.make_partitions(connection)
        except self._connections.all_errors as error:
            self._tables.partition_end = 0  # asked again with the next batch
            log.warning("no partition could be added", error=str(error))

    async def _failed(self, error: Exception, failures: int, count: int) -> bool:
        """After an attempt that failed: false when the batch is to be halved, true when it is to be sent again.

        It is halved only where the server has said that nothing of it was recorded; a connection that was lost leaves
        that open, and the same batch is sent again.
        """
        state = sqlstate(error)
        self.last_error = str(error) or type(error).__name__
        if state == _NO_PARTITION and "partition" in str(error):
            await self._make_partitions()
            return True
        if is_about_values(error):
            return False
        self.statistics.retried_batches += 1
        if state in TRANSIENT and failures > QUIET_FAILURES and count > 1:
            return False
        if state not in TRANSIENT or failures > QUIET_FAILURES:
            if self._healthy:
                log.warning("the store cannot be written now", error=self.last_error)
            self._healthy = False
        if state not in TRANSIENT:
            await self._drop_connection()  # it may be dead, or lead to a server that cannot be written
        await asyncio.sleep(pause_s(failures))
        return True

    def announce(self, word: str) -> None:
        if self._closed:
            raise StoreUnavailableError("the store is closed")
        self._notices.announce(word)

    def listen(self, heard: Callable[[str], None]) -> None:
        self._notices.listen(heard)

    async def backup(self, path: Path) -> None:
        from llama_deploy.state_stores.postgres_copy import write_copy

        if self._closed:
            raise StoreUnavailableError("the store is closed")
        await write_copy(self._connections, self._schema, path)

    async def fill(self, tasks: int, load: Callable[[asyncpg.Connection[Any], str], Awaitable[None]]) -> None:
        """Have the tables of an empty store filled in one transaction, by tasks numbered from 1 on."""
        async with self._connections.connection(transaction=True) as connection:
            await connection.execute(self._sql["take_numbers"], max(tasks, 1), tasks > 0)
            await connection.execute(self._sql["count_removed"], -tasks)
            await self._tables.make_partitions(connection)
            await load(connection, self._address.schema)


def _refusal(transition: Transition) -> LlamaDeployError:
    why = f"a guard failed for task {transition.task.task_id}" if transition.task else "a guard failed"
    return CommitConflictError("the record has changed meanwhile", why=why)
