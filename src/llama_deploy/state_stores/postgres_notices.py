"""Words between the control planes of one PostgreSQL database, over NOTIFY: a hint to look, never the only word.

They travel apart from commits: a NOTIFY within a commit makes all commits of the database wait for each other. What is
said within a moment is one statement, each word once. A word may be lost (a connection is cut) or repeated; whoever
listens is told `""` when anything may have been missed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from llama_deploy.runtime.logs import get_logger
from llama_deploy.state_stores.postgres_connection import Connections, pause_s

if TYPE_CHECKING:
    import asyncpg

log = get_logger("llama_deploy.store")

COALESCE_S = 0.02
"""What is announced within this time goes out together."""
WORDS_MAX = 10_000
"""Words that wait at most; beyond, the others are told that anything may have happened."""
PROBE_S = 30.0
"""How often a connection that listens is asked whether it is still there."""

_NOTIFY = "SELECT pg_notify($1, $2 || ' ' || word) FROM unnest($3::text[]) AS said (word)"


class PostgresNotices:
    """What one owner says to the others, and hears of them."""

    def __init__(self, connections: Connections, schema: str, owner: str) -> None:
        self._connections = connections
        self._owner = owner
        self._channel = "llama_deploy_" + sha256(schema.encode()).hexdigest()[:16]
        self._words: dict[str, None] = {}
        self._sending: asyncio.Task[None] | None = None
        self._listening: asyncio.Task[None] | None = None
        self._heard: Callable[[str], None] | None = None
        self.statements = 0

    def announce(self, word: str) -> None:
        """Say something soon; a word that waits already is not said twice."""
        if len(self._words) >= WORDS_MAX:
            self._words = {"": None}
        self._words[word] = None
        if self._sending is None or self._sending.done():
            self._sending = asyncio.ensure_future(self._send())

    async def _send(self) -> None:
        while self._words:
            await asyncio.sleep(COALESCE_S)
            words, self._words = list(self._words), {}
            try:
                async with self._connections.connection() as connection:
                    await connection.execute(_NOTIFY, self._channel, self._owner, words)
                self.statements += 1
            except self._connections.all_errors as error:  # whoever listened has lost its connection as well
                log.info("what was announced did not go out", error=str(error), words=len(words))

    def listen(self, heard: Callable[[str], None]) -> None:
        """Have `heard` called on the loop with what others say; behind a pooling proxy nothing can be heard."""
        self._heard = heard
        if self._listening is None and not self._connections.address.proxied:
            self._listening = asyncio.ensure_future(self._listen_for_ever())

    async def _listen_for_ever(self) -> None:
        failures = 0
        while True:
            try:
                connection = await self._connections.connect()
            except self._connections.all_errors:
                failures += 1
                await asyncio.sleep(pause_s(failures))
                continue
            try:
                await self._listen_on(connection)
            except self._connections.all_errors as error:
                failures += 1
                log.info("nothing is heard of other control planes for a moment", error=str(error))
                await asyncio.sleep(pause_s(failures))
            finally:
                connection.terminate()

    async def _listen_on(self, connection: asyncpg.Connection[Any]) -> None:
        gone = asyncio.Event()
        connection.add_termination_listener(lambda _: gone.set())
        await connection.add_listener(self._channel, self._hear)
        self._tell("")  # what was said before nobody knows
        while not gone.is_set():
            try:
                async with asyncio.timeout(PROBE_S):
                    await gone.wait()
            except TimeoutError:
                await connection.execute("SELECT")

    def _hear(self, _: object, __: int, ___: str, payload: object) -> None:
        owner, _space, word = str(payload).partition(" ")
        if owner != self._owner:
            self._tell(word)

    def _tell(self, word: str) -> None:
        if self._heard is not None:
            try:
                self._heard(word)
            except Exception as error:  # a defect of who listens must not make the store deaf
                log.exception("what another control plane said could not be used", exc_info=error)

    async def close(self) -> None:
        """Say what is left to be said, and listen no more."""
        if self._sending is not None:
            await asyncio.gather(self._sending, return_exceptions=True)
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
            self._listening = None
