"""Contents of code in a worker process: they go through its parent, part by part, when that asks for them.

A content stays in the worker, as bytes or as its file; the parent offers it over the instance's connection and asks
for a part when that is to be sent. So nothing is copied that is stored already, and neither side holds more than a few
parts, also where the connection is lost and the transfer begins again.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import msgspec

from llama_deploy.runtime.files import PART_BYTES
from llama_deploy.services.contents import Contents, Parts

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.decode


class LentContent:
    """A content that is in a worker process, as its parent reads it."""

    def __init__(self, hash_: str, size_bytes: int, ask: Callable[[int], None]) -> None:
        self.hash = hash_
        self.size_bytes = size_bytes
        self._ask = ask
        self._wanted: dict[int, asyncio.Future[bytes]] = {}

    @property
    def parts(self) -> int:
        """How many parts it has."""
        return -(-self.size_bytes // PART_BYTES)

    async def part(self, position: int) -> bytes:
        """One part, counted from 0: the worker is asked for it."""
        wanted = self._wanted[position] = asyncio.get_running_loop().create_future()
        self._ask(position)
        try:
            data: bytes = await wanted
            return data
        finally:
            del self._wanted[position]

    def take(self, position: int, data: bytes | None) -> None:
        """What the worker says to that; `None`: its code does not wait for the end of it any more."""
        wanted = self._wanted.get(position)
        if wanted is None or wanted.done():
            return
        if data is None:
            wanted.cancel()
        else:
            wanted.set_result(data)


class Lending:
    """What the parent of one worker process does for the contents of its present attempt."""

    def __init__(self, say: Callable[..., None]) -> None:
        self._say = say
        self._lent: dict[int, LentContent] = {}
        self._work: dict[asyncio.Task[Any], None] = {}

    def asked(self, contents: Contents, kind: str, number: int, hash_: str, value: bytes) -> asyncio.Task[bytes]:
        """Start on what the worker asks for: a content to be kept, or a piece of one that is."""
        if kind == "keep":
            content = self._lent[number] = LentContent(hash_, int(value), lambda part: self._say("part", number, part))
            task = asyncio.get_running_loop().create_task(self._keep(contents, number, content))
        else:
            first, limit = _decode(value)
            task = asyncio.get_running_loop().create_task(self._piece(contents, hash_, first, limit))
        self._work[task] = None
        task.add_done_callback(lambda done: self._work.pop(done, None))
        return task

    async def _keep(self, contents: Contents, number: int, content: LentContent) -> bytes:
        try:
            await contents.keep(content)
        finally:
            del self._lent[number]
        return b""

    @staticmethod
    async def _piece(contents: Contents, hash_: str, first: int, limit: int) -> bytes:
        return _encode(await contents.piece(hash_, first, limit))

    def take(self, number: int, position: int, data: bytes | None) -> None:
        """A part has come."""
        content = self._lent.get(number)
        if content is not None:
            content.take(position, data)

    def end(self) -> None:
        """The attempt has ended: nobody waits for anything of it."""
        for task in tuple(self._work):
            task.cancel()


class WorkerContents(Contents):
    """What the code in a worker process stores and reads."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        say: Callable[..., None],
        answers: dict[int, Future[Any]],
        numbers: itertools.count[int],
    ) -> None:
        self._loop = loop
        self._say = say
        self._answers = answers
        self._numbers = numbers
        self._here: dict[int, Parts] = {}

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The worker's loop."""
        return self._loop

    async def keep(self, content: Parts) -> None:
        number = next(self._numbers)
        self._here[number] = content
        try:
            await self._ask(number, "keep", content.hash, str(content.size_bytes).encode())
        finally:
            del self._here[number]

    async def piece(self, hash: str, first: int, limit: int) -> tuple[bytes, int]:  # noqa: A002
        found = await self._ask(next(self._numbers), "piece", hash, _encode([first, limit]))
        data, size_bytes = _decode(found)
        return data, size_bytes

    async def _ask(self, number: int, kind: str, hash_: str, value: bytes) -> bytes:
        answer: Future[bytes] = Future()
        self._answers[number] = answer
        self._say(kind, number, hash_, value)
        return await asyncio.wrap_future(answer)

    async def give(self, number: int, position: int) -> None:
        """Say a part of a content that is being kept; nothing where nobody waits for that any more."""
        content = self._here.get(number)
        data: bytes | None = None
        try:
            if content is not None:
                data = await content.part(position)
        except (OSError, ValueError) as error:  # ValueError: its file was closed, nobody waits any more
            answer = self._answers.pop(number, None)
            if answer is not None and not answer.done():
                answer.set_exception(error)
        self._say("part", number, position, data)
