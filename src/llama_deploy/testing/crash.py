"""The crash of a control plane within one process: what is not committed is gone, and nobody is told anything.

A process that dies takes its memory along. Here the memory stays, so it is cut off: its store forgets and never
answers, its connections say nothing more, its timers are canceled.
"""

from __future__ import annotations

import asyncio
from typing import Any

from llama_deploy.control_plane import ControlPlane
from llama_deploy.state_stores import StateStore


class _Gone:
    """What a crashed control plane has in the place of its store: writes vanish, reads never return."""

    healthy = True
    backlog = 0

    def record(self, transition: Any) -> None:
        """Forget it."""

    def __getattr__(self, name: str) -> Any:
        async def never(*_: Any, **__: Any) -> None:
            await asyncio.get_running_loop().create_future()

        return never


def cut_off(plane: ControlPlane) -> StateStore:
    """The instant of the crash. Returns the store; what was handed to it and not committed is its owner's to forget."""
    store = plane.store
    gone: Any = _Gone()
    plane.store = plane.engine.store = gone
    plane.engine.stopping = True
    for port in tuple(plane.gateway.ports):
        port._is_closed = True  # noqa: SLF001 - it says nothing more, and hears nothing
        port._outgoing.clear()  # noqa: SLF001
        for subscription in port._places.subscriptions.values():  # noqa: SLF001
            subscription.close()
        port.close()
    for client in tuple(plane.clients.ports):
        client._outgoing.clear()  # noqa: SLF001
        client.close()
    return store


async def bury(plane: ControlPlane) -> None:
    """End what still runs of a control plane that was cut off."""
    plane.gateway.leases.stop()
    for timer in plane.gateway._dropped.values():  # noqa: SLF001
        timer.cancel()
    await plane.sweeper.stop()
    await plane.retention.stop()
    await plane.schedules.stop()
    await plane.engine.stop()
    await plane.queue.stop()
