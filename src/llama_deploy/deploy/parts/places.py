"""A service's place at a control plane: in its process, or over the network by its address. It is entered once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

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
        self._ready = asyncio.Event()
        """Whether what serves them has registered them; each that serves has one of its own, as the next one."""
        self._stop = asyncio.Event()
        self._over = asyncio.Event()
        self._error: BaseException | None = None

    async def enter(self, url: str) -> None:
        """Serve them at a control plane's address; they are registered when this returns. Raises `CannotReachError`."""
        if self._may_begin():
            self._begin(lambda stop, ready: self._serve_there(url, CONNECT_TIMEOUT_S, ready.set, stop))
        serving = self._serving
        assert serving is not None
        ready = asyncio.ensure_future(self._ready.wait())
        try:
            await asyncio.wait((serving, ready), return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        if serving.done():
            await serving

    def enter_here(self) -> None:
        """Serve them at the control plane that was made in this process, else at the address that the queue knows."""
        if self._may_begin():
            self._begin(self._serve_here)
            self._ready.set()  # nobody waits for what is near

    def _may_begin(self) -> bool:
        """Whether nothing serves them that goes on."""
        return self._serving is None or self._serving.done() or self._stop.is_set()

    def _begin(self, serve: Callable[[asyncio.Event, asyncio.Event], Coroutine[Any, Any, None]]) -> None:
        """Serve them from now on, or from when what serves them still has left."""
        earlier, self._error = self._serving, None
        self._over.clear()
        stop, ready = self._stop, self._ready = asyncio.Event(), asyncio.Event()

        async def serving() -> None:
            if earlier is not None:
                await asyncio.wait((earlier,))
            await serve(stop, ready)

        self._serving = asyncio.create_task(serving())
        self._serving.add_done_callback(self._ended)

    async def _serve_here(self, stop: asyncio.Event, _: asyncio.Event) -> None:
        control_plane = self._queue.control_plane
        if control_plane is None:
            await self._serve_there(self._queue.control_plane_url, None, None, stop)
        else:
            await control_plane.serve_here(self._services, stop, drain_timeout_s=DRAIN_TIMEOUT_S)

    async def _serve_there(
        self, url: str, connect_timeout_s: float | None, on_ready: Callable[[], None] | None, stop: asyncio.Event
    ) -> None:
        await serve_services(
            self._services,
            control_plane_url=url,
            drain_timeout_s=DRAIN_TIMEOUT_S,
            connect_timeout_s=connect_timeout_s,
            on_ready=on_ready,
            stop=stop,
            handle_signals=False,
        )

    async def stay(self) -> None:
        """Wait until this is canceled, and leave then. Raises what serving them has failed with."""
        try:
            while self._error is None:
                await self._over.wait()
            raise self._error
        finally:
            await self.leave()

    def _ended(self, serving: asyncio.Task[None]) -> None:
        failed = not serving.cancelled() and serving.exception() is not None
        if failed and serving is self._serving:
            self._error = serving.exception()
            self._over.set()

    async def leave(self) -> None:
        """Finish or hand back what they hold, and go."""
        serving = self._serving
        if serving is not None:
            self._stop.set()
            await asyncio.gather(serving, return_exceptions=True)
