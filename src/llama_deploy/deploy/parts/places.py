"""A service's place at a control plane: in its process, or over the network by its address. It is entered once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from llama_deploy.services.base import Service
from llama_deploy.services.link import serve_services

if TYPE_CHECKING:
    from llama_deploy.deploy.parts.queues import BaseMessageQueue

CONNECT_TIMEOUT_S = 30.0
"""How long a service waits for the control plane that it registers with."""
DRAIN_TIMEOUT_S = 10.0
"""How long a service that leaves finishes what it holds; the rest is handed back."""


class Place:
    """Services that belong together, and where they are served."""

    def __init__(self, services: Sequence[Service], queue: BaseMessageQueue) -> None:
        self._services = services
        self._queue = queue
        self._serving: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._over = asyncio.Event()
        self._error: BaseException | None = None

    async def enter(self, url: str) -> None:
        """Serve them at a control plane's address; they are registered when this returns. Raises `CannotReachError`."""
        if self._serving is not None and not self._serving.done():
            return
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(
            self._serve_there(url, CONNECT_TIMEOUT_S, lambda: None if ready.done() else ready.set_result(None))
        )
        self._watch(serving)
        await asyncio.wait((serving, ready), return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            await serving

    def enter_here(self) -> None:
        """Serve them at the control plane that was made in this process, else at the address that the queue knows."""
        if self._serving is None or self._serving.done():
            control_plane = self._queue.control_plane
            serving = (
                self._serve_there(self._queue.control_plane_url, None, None)
                if control_plane is None
                else control_plane.serve_here(self._services, self._stop, drain_timeout_s=DRAIN_TIMEOUT_S)
            )
            self._watch(asyncio.create_task(serving))

    async def _serve_there(
        self, url: str, connect_timeout_s: float | None, on_ready: Callable[[], None] | None
    ) -> None:
        await serve_services(
            self._services,
            control_plane_url=url,
            drain_timeout_s=DRAIN_TIMEOUT_S,
            connect_timeout_s=connect_timeout_s,
            on_ready=on_ready,
            stop=self._stop,
            handle_signals=False,
        )

    async def stay(self) -> None:
        """Wait until this is canceled, and leave then. Raises what serving them has failed with."""
        try:
            await self._over.wait()
            assert self._error is not None
            raise self._error
        finally:
            await self.leave()

    def _watch(self, serving: asyncio.Task[None]) -> None:
        serving.add_done_callback(self._ended)
        self._serving = serving

    def _ended(self, serving: asyncio.Task[None]) -> None:
        if not serving.cancelled() and (error := serving.exception()) is not None:
            self._error = error
            self._over.set()

    async def leave(self) -> None:
        """Finish or hand back what they hold, and go."""
        serving, self._serving = self._serving, None
        if serving is not None:
            self._stop.set()
            await asyncio.gather(serving, return_exceptions=True)
            self._stop = asyncio.Event()
