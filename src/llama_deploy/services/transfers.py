"""The contents that this instance stores and reads, over the one connection that it has.

A transfer that loses its connection begins again on the next one; whoever waits for it notices nothing. At most
`TRANSFERS_MAX` run at a time, and of each a few parts are in memory.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from llama_deploy.messages.contents import (
    WINDOW_PARTS,
    ContentKept,
    ContentPart,
    ContentRefused,
    ContentTaken,
    ContentWanted,
    DropContent,
    GetContent,
    OfferContent,
    PutContent,
)
from llama_deploy.messages.problems import from_problem
from llama_deploy.runtime import failpoint
from llama_deploy.services.contents import Contents, Parts

TRANSFERS_MAX = 16
"""Transfers of one instance at the same time; others wait for their turn."""


class _LostError(Exception):
    """The connection is gone, and the transfer with it."""


class Transfers(Contents):
    """What one instance stores and reads."""

    def __init__(self, ready: asyncio.Event, post: Callable[[Any], None]) -> None:
        self._ready = ready
        self._post = post
        self._loop: asyncio.AbstractEventLoop | None = None
        self._numbers = itertools.count(1)
        self._replies: dict[int, asyncio.Queue[Any]] = {}
        self._places = asyncio.Semaphore(TRANSFERS_MAX)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The instance's loop."""
        assert self._loop is not None, "the runner has not been started"
        return self._loop

    def start(self) -> None:
        """Run on this loop from now on."""
        self._loop = asyncio.get_running_loop()

    def receive(self, operation: Any) -> None:
        """What the control plane says about a transfer."""
        replies = self._replies.get(operation.transfer)
        if replies is not None:
            replies.put_nowait(operation)

    def disconnected(self) -> None:
        """The connection is gone: every transfer begins again on the next one."""
        for replies in self._replies.values():
            replies.put_nowait(None)

    async def keep(self, content: Parts) -> None:
        await self._again_when_lost(lambda transfer, replies: self._send(content, transfer, replies))

    async def piece(self, hash: str, first: int, limit: int) -> tuple[bytes, int]:  # noqa: A002
        async def ask(transfer: int, replies: asyncio.Queue[Any]) -> tuple[bytes, int]:
            self._post(GetContent(transfer, hash, first, limit))
            part = await _reply(replies)
            assert isinstance(part, ContentPart)
            return part.data, part.size_bytes

        found: tuple[bytes, int] = await self._again_when_lost(ask)
        return found

    async def _again_when_lost(self, work: Callable[[int, asyncio.Queue[Any]], Any]) -> Any:
        async with self._places:
            while True:
                while not self._ready.is_set():  # a connection may be gone by the time that who waits for it goes on
                    await self._ready.wait()
                transfer = next(self._numbers)
                replies = self._replies[transfer] = asyncio.Queue()
                try:
                    return await work(transfer, replies)
                except _LostError:
                    continue
                except BaseException:
                    self._post(DropContent(transfer))
                    raise
                finally:
                    del self._replies[transfer]

    async def _send(self, content: Parts, transfer: int, replies: asyncio.Queue[Any]) -> None:
        self._post(OfferContent(transfer, content.hash, content.size_bytes))
        reply = await _reply(replies)
        if isinstance(reply, ContentKept):
            return
        assert isinstance(reply, ContentWanted)
        under_way: deque[int] = deque()
        for position in range(content.parts):
            while len(under_way) >= WINDOW_PARTS:
                self._took(await _reply(replies), under_way)
            self._post(PutContent(transfer, position, await content.part(position)))
            failpoint("transfers.part_sent")
            under_way.append(position)
        while not isinstance(reply := await _reply(replies), ContentKept):
            self._took(reply, under_way)

    @staticmethod
    def _took(reply: Any, under_way: deque[int]) -> None:
        assert isinstance(reply, ContentTaken)
        assert reply.position == under_way.popleft(), "parts are taken in order"


async def _reply(replies: asyncio.Queue[Any]) -> Any:
    """The next reply. Raises `_LostError`, and what the control plane refuses with."""
    reply = await replies.get()
    if reply is None:
        raise _LostError
    if isinstance(reply, ContentRefused):
        raise from_problem(msgspec.json.decode(reply.problem))
    return reply
