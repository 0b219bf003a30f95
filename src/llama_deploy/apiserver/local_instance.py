"""Service instances in the control plane's own process: a runner and its port, without a socket between.

The control plane's own services run in one; so do those of an embedded `Deployment`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import msgspec

from llama_deploy.control_plane import ControlPlane
from llama_deploy.control_plane.gateway import Port
from llama_deploy.errors import ServiceStartError
from llama_deploy.messages.frames import decode_deliver
from llama_deploy.services import Runner
from llama_deploy.services.link import Link
from llama_deploy.services.webhook import WebhookService


@contextlib.asynccontextmanager
async def own_services(plane: ControlPlane, *, drain_timeout_s: float) -> AsyncIterator[None]:
    """Run the control plane's own services for as long as the block runs: the one that calls webhooks."""
    engine = plane.engine
    instance = LocalInstance(plane, [WebhookService(engine.webhooks.call, plane.webhooks, clock=engine.clock)])
    await instance.start()
    try:
        yield
    finally:
        await instance.stop(drain_timeout_s)


class LinkedInstance:
    """A service instance in this process that is connected like any other: to every control plane on the store."""

    def __init__(self, services: Sequence[Any], url: str) -> None:
        self.runner = Runner(services)
        self.runner.stays = True
        self._url = url
        self._link: Link | None = None

    async def start(self) -> None:
        """Start the services and wait until they are registered. Raises `ServiceStartError` where they are refused.

        Nothing of them is left then, nor where this is canceled while it waits.
        """
        settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.runner.refused = partial(_refused, settled)
        await self.runner.start()
        self._link = Link(self.runner, self._url)
        self._link.start()
        try:
            await _registered(self.runner, settled)
        except BaseException:
            await self.stop(0.0)
            raise

    async def stop(self, timeout_s: float) -> None:
        """Finish what runs, or hand it back after `timeout_s`."""
        if self._link is not None:
            await self.runner.drain(timeout_s)
            await self._link.stop()


class LocalInstance:
    """A service instance in the control plane's own process: the runner and its port, without a socket between."""

    def __init__(self, plane: ControlPlane, services: Sequence[Any]) -> None:
        self.runner = Runner(services, clock=plane.engine.clock)
        self.runner.mesh = False
        self._plane = plane
        self._port: Port | None = None

    async def start(self) -> None:
        """Start the services and wait until they are registered. Raises `ServiceStartError` where they are refused.

        Nothing of them is left then, nor where this is canceled while it waits.
        """
        settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.runner.refused = partial(_refused, settled)
        await self.runner.start()
        port = self._port = self._plane.gateway.attach(self._receive, close=self.runner.disconnected, in_process=True)
        self.runner.send = port.receive
        port.receive([self.runner.hello()])
        try:
            await _registered(self.runner, settled)
        except BaseException:
            await self.stop(0.0)
            raise

    def _receive(self, operations: list[Any]) -> None:
        self.runner.receive([decode_deliver(op) if isinstance(op, msgspec.Raw) else op for op in operations])

    async def stop(self, timeout_s: float) -> None:
        """Finish what runs, or hand it back after `timeout_s`."""
        if self._port is not None:
            await self.runner.drain(timeout_s)
            await asyncio.sleep(0)  # the goodbye is on its way with this turn of the loop
            self._port.closed()


def _refused(settled: asyncio.Future[None], problem: dict[str, Any]) -> None:
    if not settled.done():
        settled.set_exception(ServiceStartError(problem["what"], why=problem["why"], fix=problem["fix"]))


async def _registered(runner: Runner, settled: asyncio.Future[None]) -> None:
    """Wait until an instance is registered; raises with what it was refused."""
    ready = asyncio.ensure_future(runner.ready.wait())
    answers: list[asyncio.Future[Any]] = [ready, settled]
    try:
        await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
        if settled.done():
            await settled
    finally:
        for answer in answers:
            answer.cancel()
