"""Starting the services of one instance, and stopping them: all of them, or none."""

from __future__ import annotations

from collections.abc import Iterable

from llama_deploy.services.base import Service


async def start_all(services: Iterable[Service]) -> None:
    """Start one after the other; where one cannot be, or the caller is cancelled, those before it are stopped again."""
    started: list[Service] = []
    try:
        for service in services:
            await service.start()
            started.append(service)
    except BaseException:
        await stop_all(started)
        raise


async def stop_all(services: Iterable[Service]) -> None:
    """Stop one after the other."""
    for service in services:
        await service.stop()
