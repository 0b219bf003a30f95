"""The ways to control planes that count for gates of this one: a WebSocket to each, made again when it is lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from llama_deploy.connections.websocket import WebSocketTransport
from llama_deploy.control_plane.leadership import Member
from llama_deploy.errors import LlamaDeployError
from llama_deploy.messages.counting import CONNECT_PATH, decode_counting_frame
from llama_deploy.runtime.credentials import Credentials
from llama_deploy.runtime.logs import get_logger

log = get_logger("llama_deploy.counting")

AGAIN_S = (0.1, 0.3)
"""Pause before a connection is made again."""


class CountingLink:
    """Fulfils `Link` over a network; `opened`, `received` and `lost` are called on this event loop."""

    def __init__(
        self,
        member: Member,
        opened: Callable[[], None],
        received: Callable[[list[Any]], None],
        lost: Callable[[], None],
    ) -> None:
        self._member = member
        self._opened, self._received, self._lost = opened, received, lost
        self._gone = asyncio.Event()
        self._transport: WebSocketTransport | None = None
        self._task = asyncio.create_task(self._run())

    def send(self, operations: list[Any]) -> None:
        if self._transport is not None:
            self._transport.send(operations)

    def close(self) -> None:
        self._task.cancel()

    async def _run(self) -> None:
        told = ""
        try:
            while True:
                try:
                    if self._transport is None:
                        self._transport = WebSocketTransport(
                            self._member.url,
                            credentials=Credentials().with_environment(),
                            passing_on=True,
                            connect_path=CONNECT_PATH,
                            decode=decode_counting_frame,
                        )
                    self._gone.clear()
                    await self._transport.connect(self._received, self._ended)
                except LlamaDeployError as error:
                    if told != (told := str(error)):
                        log.warning("who counts what is limited cannot be reached", url=self._member.url, error=told)
                else:
                    told = ""
                    self._opened()
                    await self._gone.wait()
                    self._lost()
                await asyncio.sleep(random.uniform(*AGAIN_S))  # noqa: S311 - jitter
        finally:
            if self._transport is not None:
                await self._transport.close()

    def _ended(self, _: BaseException | None) -> None:
        self._gone.set()
