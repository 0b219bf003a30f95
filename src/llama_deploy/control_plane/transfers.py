"""The contents that one instance sends and fetches over its own connection, beside everything else that it says.

Each transfer is a task of its own: it waits for the store, and nothing else waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from llama_deploy.control_plane.contents import Contents
from llama_deploy.errors import InvalidRequestError, LlamaDeployError, QueueFullError
from llama_deploy.messages.contents import (
    PART_BYTES,
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
from llama_deploy.runtime.logs import get_logger

log = get_logger("llama_deploy.gateway")

TRANSFERS_MAX = 256
"""Transfers of one instance at the same time."""


class Transfers:
    """The transfers of one connection."""

    def __init__(self, contents: Contents, post: Callable[[Any], None]) -> None:
        self._contents = contents
        self._post = post
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._parts: dict[int, asyncio.Queue[PutContent]] = {}
        self.handlers: dict[type, Callable[[Any], None]] = {
            OfferContent: self._offer,
            PutContent: self._put,
            GetContent: self._get,
            DropContent: self._drop,
        }

    def close(self) -> None:
        """The connection is gone."""
        for task in self._tasks.values():
            task.cancel()

    def _start(self, transfer: int, work: Callable[[], Awaitable[None]]) -> None:
        if transfer in self._tasks or len(self._tasks) >= TRANSFERS_MAX:
            error = QueueFullError(f"the instance has {TRANSFERS_MAX} transfers under way", limit=TRANSFERS_MAX)
            self._refuse(transfer, error)
            return
        task = self._tasks[transfer] = asyncio.get_running_loop().create_task(self._run(transfer, work))
        task.add_done_callback(lambda _: self._ended(transfer))

    def _ended(self, transfer: int) -> None:
        self._tasks.pop(transfer, None)
        self._parts.pop(transfer, None)

    async def _run(self, transfer: int, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except LlamaDeployError as error:
            self._refuse(transfer, error)
        except Exception as error:  # the edge of the task: whoever waits is told
            log.exception("a transfer failed")
            self._refuse(transfer, LlamaDeployError("the control plane failed on a transfer", why=repr(error)))

    def _refuse(self, transfer: int, error: LlamaDeployError) -> None:
        self._post(ContentRefused(transfer, msgspec.json.encode(error.to_problem())))

    def _offer(self, op: OfferContent) -> None:
        async def work() -> None:
            async with self._contents.upload(op.hash, op.size_bytes) as upload:
                if upload is not None:
                    self._post(ContentWanted(op.transfer))
                    while not upload.complete:
                        part = await parts.get()
                        await upload.put(part.position, part.data)
                        self._post(ContentTaken(op.transfer, part.position))
                    await upload.finish()
            self._post(ContentKept(op.transfer))

        if op.transfer not in self._tasks:
            parts = self._parts[op.transfer] = asyncio.Queue()
        self._start(op.transfer, work)

    def _put(self, op: PutContent) -> None:
        parts = self._parts.get(op.transfer)
        if parts is None:
            return  # it was refused, and the instance does not know yet
        if parts.qsize() >= WINDOW_PARTS or len(op.data) > PART_BYTES:
            self._tasks[op.transfer].cancel()
            self._refuse(op.transfer, InvalidRequestError("more was sent than may be on its way"))
            return
        parts.put_nowait(op)

    def _get(self, op: GetContent) -> None:
        async def work() -> None:
            data, size = await self._contents.read(op.hash, max(0, op.first), max(0, min(op.limit, PART_BYTES)))
            self._post(ContentPart(op.transfer, data, size))

        self._start(op.transfer, work)

    def _drop(self, op: DropContent) -> None:
        task = self._tasks.get(op.transfer)
        if task is not None:
            task.cancel()
