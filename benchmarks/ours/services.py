"""The services that are measured. Run as a program, it serves all of them from one process of their own."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

from llama_deploy import ServiceContext, service

REMARK = "it has been said before and will be said again that this is so " * 3


@service(concurrency=64)
async def echo(text: str) -> str:
    """The text in upper case."""
    return text.upper()


@service(concurrency=64)
async def exclaim(text: str) -> str:
    """The text with a mark at its end."""
    return text + "!"


@service(concurrency=64)
async def remark(topic: str, turns: list[Any], first: int) -> str:
    """What somebody says in a chat: some two hundred characters and the number of the turn."""
    return f"{REMARK} of {topic} {first + len(turns)}"


@service
async def ticker(count: int, pause_s: float) -> AsyncIterator[float]:
    """Streams the time of day of this machine's monotonic clock, `count` times."""
    for _ in range(count):
        yield time.monotonic()
        await asyncio.sleep(pause_s)


@service(concurrency=64)
async def nap(seconds: float) -> str:
    """Works for so long."""
    await asyncio.sleep(seconds)
    return "rested"


@service
async def hold(marker: str, context: ServiceContext) -> str:
    """The first attempt writes its process id into the file `marker` and never ends; every later one ends at once."""
    if context.attempt > 1:
        return "done"
    with open(marker, "w") as file:  # noqa: ASYNC230, PTH123 - a few bytes
        file.write(str(os.getpid()))
    context.stream("begun")
    await asyncio.Event().wait()
    return "never"


ALL = (echo, exclaim, remark, ticker, nap, hold)

if __name__ == "__main__":
    import uvloop

    from llama_deploy import serve_services

    uvloop.run(serve_services(list(ALL), control_plane_url=sys.argv[1]))
